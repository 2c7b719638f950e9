"""Tables: a line a nucleus or a region, for Python, R and databases."""
