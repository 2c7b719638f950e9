"""What is made from a finished store: GeoJSON, overview."""
