"""The whole frame -> detections."""
