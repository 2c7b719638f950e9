"""``python -m nucpipe``."""

from pipeline.cli import main

main(prog_name="nucpipe")
