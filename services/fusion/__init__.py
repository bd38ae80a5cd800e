"""Detections -> counts."""
