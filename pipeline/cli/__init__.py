"""The command line: ``main`` gathers the commands, and beside it stands what they are made of."""
