"""Web server and page parts of the viewer and the service."""
