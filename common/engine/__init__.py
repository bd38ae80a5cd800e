"""Engines: a loaded model behind one small interface, whatever runs it. Start with base.py and loading.py.

This file imports nothing: a builder's own Python imports modules of this folder.
"""
