"""One source -> NV12 surfaces."""
