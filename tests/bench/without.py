"""A service without one of its optimizations: `python -m tests.bench.without WHICH SERVICE INSTANCE`. See `gains`."""

import runpy
import sys


def graphs() -> None:
    """Batches are launched plainly."""
    from peoplecounter.common.engine.graph_cache import GraphCache

    GraphCache.get = lambda self, address, images: None


def kernel() -> None:
    """A chain of torch operations in place of the one Triton kernel."""
    from peoplecounter.services.preprocess import kernels

    kernels.TritonKernel = kernels.TorchKernel


if __name__ == "__main__":
    _, which, service, instance = sys.argv
    {"graphs": graphs, "kernel": kernel}[which]()
    sys.argv = [service, instance]
    runpy.run_module(f"peoplecounter.services.{service}", run_name="__main__")
