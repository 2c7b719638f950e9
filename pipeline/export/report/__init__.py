"""``report.html``: what was found on a slide, or on a batch of slides, for people to read and to print."""
