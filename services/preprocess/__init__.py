"""Surfaces -> tensors."""
