"""Engines: a loaded model behind one small protocol, whatever runs it."""

from common.engine.model import Swapped
from common.engine.protocol import Engine, check, load

__all__ = ["Engine", "Swapped", "check", "load"]
