"""A file a command, or two that belong together; heavy packages are imported inside them."""
