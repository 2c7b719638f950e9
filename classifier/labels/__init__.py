"""The label systems: what is known of each, and which label of one teaches another."""
