"""Tracks and crossings on real footage with truth, and on the plaza, whose truth is exact."""
