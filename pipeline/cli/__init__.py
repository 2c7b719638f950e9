"""The commands of the command line, a file for each kind; heavy packages are imported inside them."""
