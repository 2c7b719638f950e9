"""Images in which each nucleus is an area of pixels."""
