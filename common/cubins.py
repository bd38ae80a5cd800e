"""Triton kernels without torch: compiled once, kept as cubins, launched by the CUDA driver.

A kernel is named by its module and its function, so that one that was kept needs neither Triton nor its compiler. What
is kept is named by the text of that module and by all that was constant when it was compiled. `peoplecounter doctor
--warm` compiles ahead.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import logging
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from peoplecounter.common.errors import AppError
from peoplecounter.common.files import cache_folder, make_private_folder, write_file

LOG = logging.getLogger("cubins")
SHIPPED = Path(sys.prefix) / "share" / "peoplecounter" / "cubins"  # what an image brings with it
ALIGNED = 16  # a pointer or number that is a multiple of this lets Triton write wider loads and stores
STATIC_SHARED_BYTES = 48 << 10  # a kernel that needs more shared memory has to ask for it
THREADS_PER_WARP = 32
SCALARS: dict[type, tuple[str, Any]] = {int: ("i32", ctypes.c_int32), float: ("fp32", ctypes.c_float)}
ONE = "one"  # a number that is 1 is a constant: a step of 1 lets Triton read neighbours at once
SCRATCH = 4  # null pointers behind the arguments: Triton 3.6 expects two, the driver reads as many as the kernel has


KINDS = {"uint8": "u8", "uint16": "u16", "int32": "i32", "float16": "fp16", "float32": "fp32"}  # dtypes -> of Pointers


class TritonFunction(NamedTuple):
    """A function decorated by triton.jit: its pointers and numbers first, then its constants."""

    module: str
    function: str


class Pointer(NamedTuple):
    """Into GPU memory, at what kind of number, one of KINDS."""

    address: int
    kind: str


Argument = Pointer | int | float
Constants = Mapping[str, int]


@dataclass(frozen=True)
class Variant:
    """Everything that a cubin depends on, but the text of its module."""

    kernel: TritonFunction
    kinds: tuple[str, ...]  # of the arguments: "*u8", "i32", …; ONE for a number that is 1
    aligned: tuple[int, ...]  # which of them are multiples of ALIGNED
    constants: tuple[tuple[str, int], ...]
    warps: int
    capability: int  # 90: the compute capability 9.0

    def file_name(self) -> str:
        """Where it is kept. Raises AppError when its module does not exist."""
        spec = importlib.util.find_spec(self.kernel.module)
        if spec is None or spec.origin is None:
            raise AppError(f"The kernel's module {self.kernel.module} does not exist.")
        text = Path(spec.origin).read_bytes()
        digest = hashlib.sha256(text + repr(self).encode()).hexdigest()
        return f"{self.kernel.function}.sm{self.capability}.{digest[:32]}.cubin"


class Cubin(msgspec.Struct, frozen=True):
    """What the driver loads."""

    function: str
    shared_bytes: int
    code: bytes


def variant(
    kernel: TritonFunction, arguments: Sequence[Argument], constants: Constants, warps: int, capability: int
) -> Variant:
    """The one that these arguments need."""
    kinds = tuple(map(_kind, arguments))
    values = [a.address if isinstance(a, Pointer) else a for a in arguments]
    aligned = tuple(i for i, value in enumerate(values) if isinstance(value, int) and value % ALIGNED == 0)
    return Variant(kernel, kinds, aligned, tuple(sorted(constants.items())), warps, capability)


def cubin(wanted: Variant) -> Cubin:
    """From the image, from this user's cache, or compiled, which takes seconds, and kept."""
    name = wanted.file_name()
    for folder in (SHIPPED, _cache()):
        if folder and (found := _kept(folder / name)):
            return found
    made = compiled(wanted)
    if folder := _cache():
        try:
            keep(made, folder / name)
        except AppError as error:
            LOG.info("the cubin cannot be kept, so the next start compiles again: %s", error)
    return made


def compiled(wanted: Variant) -> Cubin:
    """Compiles for a GPU that need not be here. Raises AppError when Triton is missing."""
    built = triton_kernel(wanted)
    return Cubin(built.metadata.name, built.metadata.shared, built.asm["cubin"])


def triton_kernel(wanted: Variant) -> Any:
    """Triton's own compiled kernel: its `asm` also has the PTX."""
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
    except ModuleNotFoundError as error:
        raise AppError(
            f"The kernel {wanted.kernel.function} was not compiled ahead and cannot be compiled here ({error}): "
            "install triton. Where it is installed, 'peoplecounter doctor --warm' compiles for cameras of common sizes."
        ) from None
    function = getattr(importlib.import_module(wanted.kernel.module), wanted.kernel.function)
    names, constants = function.arg_names, dict(wanted.constants)
    constants |= {names[i]: 1 for i, kind in enumerate(wanted.kinds) if kind == ONE}
    source = ASTSource(
        function,
        {name: "constexpr" if name in constants else wanted.kinds[i] for i, name in enumerate(names)},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", ALIGNED]] for i in wanted.aligned},
    )
    target = GPUTarget("cuda", wanted.capability, THREADS_PER_WARP)
    return compile(source, target=target, options={"num_warps": wanted.warps})


def keep(made: Cubin, path: Path) -> None:
    """Raises AppError when it cannot be written."""
    make_private_folder(path.parent, "cache")
    write_file(path, msgspec.msgpack.encode(made))


def _cache() -> Path | None:
    try:
        return cache_folder() / "cubins"
    except AppError:
        return None


def _kept(path: Path) -> Cubin | None:
    """None for a file that is missing, damaged, or in a folder that another user may write to."""
    try:
        about = path.parent.stat()
        if about.st_uid not in (0, os.getuid()) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        return msgspec.msgpack.decode(path.read_bytes(), type=Cubin)
    except (OSError, msgspec.MsgspecError):
        return None


class Launch:
    """A kernel in the GPU's memory with its arguments, ready to be queued again and again."""

    def __init__(self, kernel: TritonFunction, grid: Sequence[int], arguments: Sequence[Argument], constants: Constants,
                 warps: int = 4):  # fmt: skip
        """Compiles, if this variant is new. `grid`: programs in x, and in y, z if there are more."""
        self._grid = (*grid, 1, 1)[:3]
        self._threads = warps * THREADS_PER_WARP
        from peoplecounter.common import cuda

        device = cuda.current()
        needed = variant(kernel, arguments, constants, warps, _capability(device))
        self._function, self._shared_bytes = _loaded(needed, device)
        self._values: list[Any] = [_value(argument) for argument in arguments if _kind(argument) != ONE]
        self._values += [ctypes.c_void_p() for _ in range(SCRATCH)]
        addresses = [ctypes.addressof(value) for value in self._values]
        self._parameters = (ctypes.c_void_p * len(addresses))(*addresses)

    def __call__(self, stream: int, *addresses: int) -> None:
        """Queues it, its first arguments pointing to these addresses, which are aligned as the first ones were."""
        from peoplecounter.common.cuda import check, driver

        for value, address in zip(self._values, addresses):
            value.value = address
        parameters = ctypes.addressof(self._parameters)
        check(
            driver.cuLaunchKernel(
                self._function, *self._grid, self._threads, 1, 1, self._shared_bytes, stream, parameters, 0
            )
        )


@cache
def _capability(device: int) -> int:
    """Of a visible GPU; asked once, as the driver takes long to answer and every turned picture is a new Launch."""
    from peoplecounter.common import cuda

    about = cuda.device(device)
    return about.major * 10 + about.minor


@lru_cache(maxsize=128)
def _loaded(wanted: Variant, device: int) -> tuple[Any, int]:
    """(the function on this GPU, which is current, bytes of shared memory that it needs)."""
    from peoplecounter.common.cuda import check, driver

    made = cubin(wanted)
    module = check(driver.cuModuleLoadData(made.code))  # stays until the process ends
    function = check(driver.cuModuleGetFunction(module, made.function.encode()))
    if made.shared_bytes > STATIC_SHARED_BYTES:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        check(driver.cuFuncSetAttribute(function, attribute, made.shared_bytes))
    return function, made.shared_bytes


def _kind(argument: Argument) -> str:
    if isinstance(argument, Pointer):
        return f"*{argument.kind}"
    return ONE if argument == 1 and isinstance(argument, int) else SCALARS[type(argument)][0]


def _value(argument: Argument) -> Any:
    if isinstance(argument, Pointer):
        return ctypes.c_void_p(argument.address)
    return SCALARS[type(argument)][1](argument)
