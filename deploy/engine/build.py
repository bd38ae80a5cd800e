"""ONNX -> plan with TensorRT's builder, 10.15 to 11.x, and 8.6, whose networks are weakly typed; or with the builder of
TensorRT-RTX, which needs no GPU and builds for the architectures it is told.

The precision is that of the ONNX file (strongly typed), see `engine precision`. Only the standard library, CUDA's
bindings and TensorRT are imported, so this module also runs in a builder's own Python.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from peoplecounter.common.engine.onnx_file import metadata
from peoplecounter.common.engine.sidecar import NAMES, Sidecar, capability, sidecar_path
from peoplecounter.common.engine.tensorrt_log import logger
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.files import Replacement, sha256, write_file
from peoplecounter.deploy.engine.timing import TimingCache, key

POLL_S = 0.1


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build."""

    batches: tuple[tuple[int, int, int], ...] = ((1, 16, 32),)  # (min, opt, max) images, one profile each
    workspace_mb: int = 4096
    level: int = 3  # optimization level 0 … 5
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip: bool = False  # leave the weights out; they come from the ONNX file when the plan is loaded
    refit: bool = False  # allow other weights later, see `engine swap`
    timing_cache: Path | None = None  # its folder; None: off
    runtime: str = "tensorrt"  # or "rtx"
    targets: tuple[str, ...] = ()  # of rtx: "sm120" …

    def check(self) -> None:
        """Raises AppError for options that contradict each other or are out of bounds."""
        for smallest, optimal, largest in self.batches:
            if not 1 <= smallest <= optimal <= largest <= 1024:
                raise AppError(
                    f"Invalid batch {smallest}/{optimal}/{largest}: 1 <= MIN <= OPT <= MAX <= 1024 must hold."
                )
        if all(smallest > 1 for smallest, _, _ in self.batches):
            raise AppError("No batch takes a single image, which infer_global needs: add --batch 1.")
        if not 0 <= self.level <= 5:
            raise AppError(f"Invalid optimization level {self.level}: use 0 to 5.")
        if self.runtime not in NAMES:
            raise AppError(f"Unknown runtime {self.runtime!r}: use {' or '.join(NAMES)}.")
        rtx = self.runtime == "rtx"
        if rtx != bool(self.targets):
            raise AppError("--runtime rtx and --target, e.g. sm120, belong together: the one needs the other.")
        if rtx and (self.version_compatible or self.hardware_compatible or self.strip or self.refit):
            raise AppError(
                "Plans of TensorRT-RTX cannot be version- or hardware-compatible, stripped or refitted: --target says "
                "where they run."
            )
        if self.version_compatible and (self.strip or self.refit):
            raise AppError("A version-compatible plan cannot be refitted: omit --strip and --refit.")


class BuildProgress:
    """The progress of a build, read by another thread; cancel() ends the build."""

    def __init__(self):
        self.phases: dict[str, tuple[int, int]] = {}  # name -> (steps done, of), outermost first
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


def build(
    onnx: Path,
    write: Callable[[bytes], None],
    options: BuildOptions,
    progress: BuildProgress,
    trt=None,
) -> tuple[Sidecar, float | None]:
    """Builds a plan and passes it to `write`, piece by piece; returns (its sidecar, seconds relative to the first
    build).

    The caller adds the hash and size of the bytes to the sidecar. Raises AppError for an ONNX file that is missing
    or not accepted by TensorRT, for a missing builder or GPU, and when cancelled.
    """
    options.check()
    trt = trt or _tensorrt(options.runtime)
    data = read_onnx(onnx)
    gpu, compute_capability, cuda = _machine(options)
    log = logger(trt)
    builder = trt.Builder(log)
    network, config = _network(trt, builder), builder.create_builder_config()
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data, str(onnx)):
        why = parser.get_error(0).desc() if parser.num_errors else log.first_error
        raise AppError(f"{NAMES[options.runtime]} does not accept {onnx}: {why.strip().rstrip('.')}.")
    batches = _profiles(trt, builder, config, network, options, onnx)
    _configure(trt, config, options)
    cache = None
    if options.timing_cache and options.runtime == "tensorrt":  # TensorRT-RTX measures nothing
        cache = TimingCache(options.timing_cache, key(gpu, compute_capability, trt.__version__, cuda))
    warm = _attach(trt, config, cache)
    monitor = _monitor(trt, progress) if hasattr(trt, "IProgressMonitor") else None  # must outlive the build
    if monitor is not None:
        config.progress_monitor = monitor
    computed = _computed(trt, network)
    began_s = time.monotonic()
    failure = _serialize(trt, builder, network, config, write)
    seconds = time.monotonic() - began_s
    if progress.cancelled.is_set():
        raise AppError("The build was cancelled: nothing was written.", SOFTWARE)
    if failure is not None:
        why = failure or log.first_error or "no reason given"
        raise AppError(f"{NAMES[options.runtime]} cannot build {onnx}: {why}.", SOFTWARE)
    ratio = None
    if cache:
        cache.add(lambda measured: _merged(config, measured))
        description = {**asdict(options), "timing_cache": None, "onnx": sha256(data)}
        ratio = cache.ratio(sha256(repr(sorted(description.items())).encode()), seconds)
    sidecar = Sidecar(
        plan_sha256="",
        plan_bytes=0,
        onnx=str(onnx),
        onnx_sha256=sha256(data),
        tensorrt=trt.__version__,
        gpu=gpu,
        compute_capability=compute_capability,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        stripped=options.strip,
        refit="any" if options.refit else "identical" if options.strip else "no",
        batches=batches,
        level=options.level,
        workspace_mb=options.workspace_mb,
        inputs=[_described(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_described(network.get_output(i)) for i in range(network.num_outputs)],
        build_s=round(seconds, 2),
        timing_cache="off" if cache is None else "warm" if warm else "cold",
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        metadata=metadata(data),
        runtime=options.runtime,
        targets=list(options.targets),
        computed=computed,
    )
    return sidecar, ratio


def build_file(
    onnx: Path, plan: Path, options: BuildOptions, progress: BuildProgress, trt=None
) -> tuple[Sidecar, float | None]:
    """Builds a plan into a file and its sidecar. Both appear only when they are complete."""
    with Replacement(plan) as file:
        sidecar, ratio = build(onnx, file.write, options, progress, trt)
        sidecar = Sidecar(
            **{
                **asdict(sidecar),
                "plan_sha256": file.sha256,
                "plan_bytes": file.nbytes,
                "onnx": os.path.relpath(onnx.absolute(), plan.absolute().parent),
            }
        )
        try:  # until its sidecar follows, an old sidecar may lie beside it; its hash differs, so the loader rejects it
            file.commit()
        except OSError as error:
            raise AppError(f"{plan} cannot be written: {error.strerror}.", SOFTWARE) from None
    write_file(sidecar_path(plan), sidecar.encode())
    return sidecar, ratio


def build_memory(
    onnx: Path, options: BuildOptions, progress: BuildProgress, trt=None
) -> tuple[bytes, Sidecar, float | None]:
    """Builds a plan in memory; returns (plan, sidecar, seconds relative to the first build)."""
    pieces: list[bytes] = []
    sidecar, ratio = build(onnx, lambda data: pieces.append(bytes(data)), options, progress, trt)
    plan = b"".join(pieces)
    described = {**asdict(sidecar), "plan_sha256": sha256(plan), "plan_bytes": len(plan), "onnx": onnx.name}
    return plan, Sidecar(**described), ratio


def watched(work: Callable[[], object], progress: BuildProgress, show: Callable[[], None] = lambda: None):
    """Runs `work` in a thread and calls `show` meanwhile. Ctrl-C cancels at the builder's next step, twice: at once."""
    outcome: list = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    def interrupt(*_: object) -> None:
        if progress.cancelled.is_set():
            raise KeyboardInterrupt
        progress.cancel()

    thread = threading.Thread(target=run, daemon=True, name="builder")
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            show()
    finally:
        signal.signal(signal.SIGINT, before)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def read_onnx(path: Path) -> bytes:
    """The bytes of an ONNX file. Raises AppError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AppError(f"The ONNX file {path} cannot be read: {error.strerror}.", NO_INPUT) from None


def _tensorrt(runtime: str):
    if runtime == "rtx":
        name = next((name for name in ("tensorrt_rtx", "tensorrt_rtx_bindings") if find_spec(name)), None)
        if name is None:
            raise AppError("TensorRT-RTX is not installed: it is in the extra 'gpu-rtx'.")
        return import_module(name)
    try:
        import tensorrt
    except ImportError:
        raise AppError(
            "Plans are built by the full TensorRT package, which is not installed: it is in the extra 'gpu'."
        ) from None
    return tensorrt


def _machine(options: BuildOptions) -> tuple[str, str, int]:
    """(GPU, its compute capability, CUDA runtime version as 13000); for TensorRT-RTX those of the targets."""
    if options.runtime == "rtx":
        return f"any GPU of {', '.join(options.targets)}", ", ".join(map(capability, options.targets)), 0
    try:
        from peoplecounter.common import cuda
    except ImportError:
        raise AppError("Plans are built on a GPU, which needs cuda-python: it is in the extra 'gpu'.") from None
    cuda.start()
    properties = cuda.device()
    version = cuda.check(cuda.cudart.cudaRuntimeGetVersion())
    return properties.name.decode(), f"{properties.major}.{properties.minor}", version


def _network(trt, builder):
    """A strongly typed network; TensorRT 8.6 has none and needs an explicit batch instead."""
    flags = trt.NetworkDefinitionCreationFlag
    kind = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
    return builder.create_network(1 << int(kind))


def _profiles(trt, builder, config, network, options: BuildOptions, onnx: Path) -> list[list[int]]:
    """Adds a profile for each batch; a network with a fixed batch has none. Returns the batches that it can run."""
    if network.num_inputs != 1:
        raise AppError(f"{onnx} has {network.num_inputs} inputs: expected one image tensor.")
    image = network.get_input(0)
    batch, *rest = tuple(image.shape)
    if len(rest) != 3 or -1 in rest:
        raise AppError(
            f"The input {image.name} of {onnx} is {[batch, *rest]}: expected [B, 3, S, S] where only B is free."
        )
    if batch != -1:
        return [[batch] * 3]
    for sizes in options.batches:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *[(size, *rest) for size in sizes])
        config.add_optimization_profile(profile)
    return [list(sizes) for sizes in options.batches]


def _configure(trt, config, options: BuildOptions) -> None:
    flags = trt.BuilderFlag
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.builder_optimization_level = options.level
    config.max_aux_streams = 0  # a linear graph; processes overlap instead
    if options.runtime == "rtx":
        known = {
            name.lower(): kind for name, kind in trt.ComputeCapability.__members__.items() if name.startswith("SM")
        }
        if unknown := [target for target in options.targets if target not in known]:
            raise AppError(f"TensorRT-RTX does not build for {', '.join(unknown)}: use {', '.join(known)}.")
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(known[target], index)
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.strip:
        config.set_flag(flags.STRIP_PLAN)
    if options.refit:
        config.set_flag(flags.REFIT)
    elif options.strip:
        config.set_flag(flags.REFIT_IDENTICAL)
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # 8.6
        config.set_flag(flags.FP16)  # the builder chooses where
        sources = trt.TacticSource  # without cuBLAS and cuDNN, as in later versions
        config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))


def _computed(trt, network) -> dict[str, int]:
    """Type -> how many convolutions and matrix products the network asks for. Behind Q/DQ pairs it is theirs.

    The builder may choose another kernel; only a GPU tells.
    """
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type in kinds:
            tensor = layer.get_input(0)
            maker = makers.get(tensor.name)
            if maker is not None and maker.type == trt.LayerType.DEQUANTIZE:
                tensor = maker.get_input(0)
            found[str(tensor.dtype).rpartition(".")[2]] += 1
    return dict(found)


def _attach(trt, config, cache: TimingCache | None) -> bool:
    """Gives the builder the earlier measurements; True when there are any."""
    if cache is None:
        config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
        return False
    known = cache.read()
    if known and config.set_timing_cache(config.create_timing_cache(known), False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False


def _merged(config, measured: bytes) -> bytes:
    """The measurements of this build, combined with earlier ones."""
    mine = config.get_timing_cache()
    if measured:
        mine.combine(config.create_timing_cache(measured), False)
    return bytes(memoryview(mine.serialize()))


def _serialize(trt, builder, network, config, write: Callable[[bytes], None]) -> str | None:
    """Builds and writes; returns None on success, otherwise the reason, which may be empty."""
    if not hasattr(trt, "IStreamWriter"):  # 8.6
        plan = builder.build_serialized_network(network, config)
        return _written(write, memoryview(plan)) if plan is not None else ""

    class Writer(trt.IStreamWriter):
        failure: str | None = None

        def __init__(self):
            trt.IStreamWriter.__init__(self)

        def write(self, data) -> int:
            """Accepts all bytes or none: an exception must not pass through TensorRT."""
            self.failure = self.failure or _written(write, data)
            return 0 if self.failure else len(data)

    writer = Writer()
    done = builder.build_serialized_network_to_stream(network, config, writer)
    return None if done and writer.failure is None else writer.failure or ""


def _written(write: Callable[[bytes], None], data) -> str | None:
    try:
        write(data)
    except OSError as error:
        return f"the plan cannot be written, {error.strerror}"
    return None


def _monitor(trt, progress: BuildProgress):
    """An IProgressMonitor that updates a BuildProgress; TensorRT's threads call it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase, num_steps: int) -> None:
            progress.phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in progress.phases:
                progress.phases[phase_name] = (step + 1, progress.phases[phase_name][1])
            return not progress.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            progress.phases.pop(phase_name, None)

    return Monitor()


def _described(tensor) -> dict:
    return {"name": tensor.name, "dtype": str(tensor.dtype).rpartition(".")[2], "shape": list(tensor.shape)}
