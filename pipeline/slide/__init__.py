"""The readers behind :func:`pipeline.slide.base.open_slide`, one file each."""
