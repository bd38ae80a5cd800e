"""The demo plaza: a synthetic clip with exact truth, and the small detector trained on it."""
