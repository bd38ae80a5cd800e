"""Engines: a loaded model behind one small protocol, whatever runs it."""

from common.engine.protocol import Engine, check, load

__all__ = ["Engine", "check", "load"]
