"""Engines: a loaded model behind one small interface, whatever runs it."""

from peoplecounter.common.engine.base import Engine, Persons
from peoplecounter.common.engine.loading import check_model, load_engine
from peoplecounter.common.engine.model import Swapped

__all__ = ["Engine", "Persons", "Swapped", "check_model", "load_engine"]
