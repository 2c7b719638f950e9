"""The viewer: a page on this machine that shows a slide with its nuclei, drawn tile by tile from the store."""
