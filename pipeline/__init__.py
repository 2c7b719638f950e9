"""The slide's way through: from a slide file to five labels for every nucleus."""
