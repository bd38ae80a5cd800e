"""Engines: a loaded model behind one small protocol, whatever runs it."""

from peoplecounter.common.engine.model import Swapped
from peoplecounter.common.engine.protocol import Engine, check, load

__all__ = ["Engine", "Swapped", "check", "load"]
