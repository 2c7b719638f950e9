"""The readers behind :func:`pipeline.slide.open_slide`, one file each."""
