"""What reads each kind of slide; ``pipeline.slide.open`` picks one."""
