"""What the viewer and the service share: how they are served, and the parts of their pages."""
