"""GeoJSON, and the folder that QuPath imports."""
