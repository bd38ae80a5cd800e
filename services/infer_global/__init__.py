"""The letterboxed frame -> detections."""
