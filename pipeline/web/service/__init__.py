"""The service: images of tissue in, nuclei with five labels out, over HTTP."""
