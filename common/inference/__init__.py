"""What infer_global and infer_tiles share."""
