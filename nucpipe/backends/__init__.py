"""Model files, and networks that run on a processor or a GPU."""
