"""Engines: a loaded model behind one small protocol, whatever runs it."""

from common.engine.protocol import Engine, load

__all__ = ["Engine", "load"]
