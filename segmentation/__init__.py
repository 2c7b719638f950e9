"""HoVer-Net: finding and outlining nuclei. Knows nothing of slides or of the classifier."""
