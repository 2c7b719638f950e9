"""The joint classifier: one network, one group of outputs per published label system. Knows nothing of slides."""
