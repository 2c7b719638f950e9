"""The journal of a running slide and the finished zarr store."""
