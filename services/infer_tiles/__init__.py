"""Tiles -> detections."""
