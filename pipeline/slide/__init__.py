"""The readers behind :func:`pipeline.slide.open.open_slide`, one file each."""
