"""Images of single nuclei, as of ``nucpipe classify``: read, prepared, named."""
