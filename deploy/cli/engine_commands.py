"""`peoplecounter engine …`: build, show, convert, serve, swap and measure engines."""

import json
import platform
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from peoplecounter.common import backend
from peoplecounter.common.engine.sidecar import check_bytes, read_sidecar, sidecar_path
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import sha256, write_file
from peoplecounter.common.keys import key_pair
from peoplecounter.common.settings import Settings, load_settings
from peoplecounter.deploy.cli.options import Config, RunDir
from peoplecounter.deploy.engine import build as builder
from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress
from peoplecounter.deploy.engine.timing import default_folder
from peoplecounter.deploy.group.client import find_group

app = typer.Typer(
    no_args_is_help=True, help="Build engines from ONNX files, measure them, and swap them into a running group."
)
Onnx = Annotated[Path, typer.Argument(help="Detector in an ONNX file.")]
Footage = Annotated[Path, typer.Option(help="A video of your own scene.")]
Batches = Annotated[
    list[str] | None, typer.Option("--batch", help="MIN/OPT/MAX images, or one number. Repeat for more profiles.")
]
CHANGE_MAX = 0.05  # of the counts by a lower precision; with more there is a warning
TimingCacheOption = Annotated[
    str, typer.Option(help="Folder of the timing caches; auto: in the user's cache; off: none.")
]


@app.command()
def build(
    onnx: Onnx,
    plan: Annotated[Path, typer.Argument(help="File to write, with a description in PLAN.json.")],
    batch: Batches = None,
    level: Annotated[int, typer.Option(help="Optimization level, 0 (quick) to 5.")] = 3,
    workspace_mb: Annotated[int, typer.Option(help="Scratch memory for kernels, MB.")] = 4096,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs in later TensorRT versions.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on Ampere and later GPUs.")
    ] = False,
    strip: Annotated[bool, typer.Option("--strip", help="Leave the weights in the ONNX file.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Allow other weights later, see swap.")] = False,
    timing_cache: TimingCacheOption = "auto",
    runtime: Annotated[
        str, typer.Option(help="tensorrt, or rtx: TensorRT-RTX, which builds on any machine, without a GPU.")
    ] = "tensorrt",
    target: Annotated[
        list[str] | None, typer.Option(help="For rtx: an architecture, e.g. sm120 (RTX 50). Repeat for several.")
    ] = None,
) -> None:
    """Build a TensorRT plan for this GPU, or one of TensorRT-RTX. Ctrl-C cancels and leaves no partial file."""
    options = BuildOptions(
        _batches(batch), workspace_mb, level, version_compatible, hardware_compatible, strip, refit,
        _folder(timing_cache), runtime, tuple(target or ()),
    )  # fmt: skip
    options.check()
    sidecar, ratio = _watched(lambda progress: builder.build_file(onnx, plan, options, progress), f"building {plan}")
    print(_built(sidecar, ratio, str(plan)))


@app.command()
def show(
    plan: Annotated[Path, typer.Argument(help="A plan with its sidecar.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar.")] = False,
) -> None:
    """Show what a plan is and where it comes from, and check that it is intact."""
    if not backend.is_plan(plan):
        raise AppError(f"{plan} does not exist or is not a TensorRT plan.", NO_INPUT)
    sidecar = read_sidecar(plan)
    if sidecar is None:
        raise AppError(
            f"{plan} has no sidecar {sidecar_path(plan).name}, so nothing else is known: build it again.",
            NO_INPUT,
        )
    check_bytes(sidecar, plan.read_bytes(), str(plan))
    if as_json:
        print(sidecar.encode().decode(), end="")
        return
    rows = {
        "plan": f"{plan}, {sidecar.plan_bytes / 1e6:.1f} MB, intact",
        "from": f"{sidecar.onnx}{_onnx_state(plan, sidecar)}",
        "built": f"{sidecar.built} by {sidecar.builder} {'for' if sidecar.targets else 'on'} {sidecar.gpu} "
        f"({sidecar.compute_capability})",
        "took": f"{sidecar.build_s:.1f} s at level {sidecar.level}, timing cache {sidecar.timing_cache}",
        "batches": ", ".join("/".join(map(str, sizes)) for sizes in sidecar.batches),
        "reads": _tensors(sidecar.inputs),
        "gives": _tensors(sidecar.outputs),
        "runs in": "this and later TensorRT versions" if sidecar.version_compatible else f"{sidecar.builder} only",
        "runs on": "Ampere and later GPUs"
        if sidecar.hardware_compatible
        else f"compute capability {sidecar.compute_capability}",
        "computes": ", ".join(f"{n} x {kind}" for kind, n in sidecar.computed.items()) or "not recorded",
        "weights": {"no": "its own", "identical": "from the ONNX file", "any": "its own or others, see 'engine swap'"}[
            sidecar.refit
        ]
        + (", stripped" if sidecar.stripped else ""),
    }
    for what, text in rows.items():
        print(f"{what:<8} {text}")


@app.command()
def precision(
    onnx: Onnx,
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    to: Annotated[str, typer.Option(help="fp16, int8 or fp8.")],
    footage: Footage,
    device: Annotated[
        str, typer.Option(help="What runs it: cpu (int8 by NNCF) or gpu (by NVIDIA ModelOpt); auto: what is here.")
    ] = "auto",
    python: Annotated[
        Path | None, typer.Option(help="Python with the tool. Default: an environment that is installed on first use.")
    ] = None,
) -> None:
    """Convert an ONNX file to a lower precision, calibrated on your own video."""
    from peoplecounter.deploy.engine.precision import convert

    before, after = convert(onnx, out, to, footage, device, python)
    change = (after - before) / max(1.0, before)
    print(_smaller(out, onnx))
    print(f"people a frame of {footage.name}: {after:.2f}, by {onnx.name} {before:.2f} ({change:+.1%})")
    if abs(change) > CHANGE_MAX:
        print(f"peoplecounter: {to} changes the counts of this model by more than {CHANGE_MAX:.0%}.", file=sys.stderr)


@app.command()
def persons(
    onnx: Onnx,
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    person_class: Annotated[int | None, typer.Option(help="The class of a person, if the model names none.")] = None,
) -> None:
    """Cut a YOLO detector to the class of persons: the same persons, a little faster."""
    from peoplecounter.deploy.engine.edit import cut_to_persons

    cut_to_persons(onnx, out, person_class)
    print(_smaller(out, onnx))


@app.command()
def resize(
    onnx: Onnx,
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of its images, px, e.g. 1280x736.")],
) -> None:
    """Make a YOLO detector read images of another size: fewer, larger views for cameras whose people are large."""
    from peoplecounter.deploy.engine.edit import resize

    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise AppError(f"Invalid --size {size!r}: use WIDTHxHEIGHT, e.g. 1280x736.")
    resize(onnx, out, int(width), int(height))
    print(f"{out}: reads {size} px")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="Plan or ONNX file.")],
    bind: Annotated[str, typer.Option(help="Endpoint; beyond loopback it needs --key.")] = "tcp://127.0.0.1:5580",
    key: Annotated[
        Path | None, typer.Option(help="File with the server's secret key; created if it does not exist.")
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Build a plan from the ONNX file first, in memory.")] = False,
    batch: Batches = None,
    level: Annotated[int, typer.Option(help="Optimization level of --build.")] = 3,
    timing_cache: TimingCacheOption = "auto",
) -> None:
    """Serve a model to infer services with engine.model = "tcp://…" until Ctrl-C."""
    from peoplecounter.common.engine.model import Model, read_model, read_weights
    from peoplecounter.deploy.engine import serve as server_module

    public, secret = key_pair(key, make=True) if key else (None, None)
    settings, weights = load_settings(), None
    if build:
        options = BuildOptions(_batches(batch), level=level, timing_cache=_folder(timing_cache))
        options.check()
        data, sidecar, ratio = _watched(
            lambda progress: builder.build_memory(model, options, progress), f"building {model}"
        )
        print(_built(sidecar, ratio, "a plan in memory"))
        loaded = Model(str(model), data, sidecar)
    else:
        wanted = settings.engine.model_copy(update={"model": str(model), "sha256": ""})
        loaded = read_model(wanted)
        if loaded.sidecar and loaded.sidecar.stripped:
            weights = read_weights(wanted, loaded.sidecar)
    served = server_module.items(loaded, weights)
    server = server_module.Server(bind, served, secret)
    print(f"{model.name}, {len(served['model'].data) / 1e6:.1f} MB, SHA-256 {served['model'].sha256}")
    print(
        f'engine.model = "{server.endpoint}"' + (f'  engine.server_key = "{public.decode()}"' if public else ""),
        flush=True,
    )
    server_module.run(server)


@app.command()
def swap(
    model: Annotated[Path, typer.Argument(help="ONNX file with other weights, or another plan.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Change the model of a running group between two frames, in all infer services or in none."""
    from peoplecounter.deploy.engine.swap_coordinator import swap_model

    group = find_group(config, run_dir)
    for name, seconds in swap_model(group.run_dir, model, group.timing).items():
        print(f"{name:<16} loaded {model.name} in {seconds:.2f} s beside the old model, then changed to it")


@app.command()
def bench(
    models: Annotated[
        list[str],
        typer.Argument(help="Models; the others are compared with the first. MODEL@RUNTIME names what runs it."),
    ],
    footage: Footage,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the video that are counted.")] = 24,
    truth: Annotated[Path | None, typer.Option(help="CSV with one row per person and a `frame` column.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each batch.")] = 60,
    out: Annotated[Path, typer.Option(help="OUT.json, OUT.md and OUT.html are written.")] = Path(".bench/engines"),
) -> None:
    """Measure engines in turns: milliseconds at batches of 1, 8, 16 and 32, size, and counts.

    Plans run on the GPU, ONNX files on the CPU: yolo26n.onnx@onnxruntime yolo26n.onnx@openvino yolo26n.plan.
    """
    from peoplecounter.deploy.engine import bench as benches
    from peoplecounter.deploy.engine import calibration
    from peoplecounter.deploy.report import evaluate

    true = evaluate.read_truth(truth) if truth else None
    surfaces = list(islice(calibration.frames(footage), frames))
    if true is not None and len(surfaces) > len(true):
        raise AppError(f"{truth} has {len(true)} frames, {len(surfaces)} would be counted: use fewer --frames.")
    engines = [benches.MeasuredEngine(_with_runtime(model)) for model in models]
    rows = benches.in_turns(engines, surfaces, rounds)
    machine = benches.machine({engine.bench.kind for engine in engines})
    out.parent.mkdir(parents=True, exist_ok=True)
    names = " ".join(Path(model).name for model in models)
    command = f"peoplecounter engine bench {names} --footage {footage.name} --frames {frames}"
    result = {
        "machine": machine,
        "python": platform.python_version(),
        "command": command,
        "engines": benches.compare(rows, true),
    }
    write_file(out.with_suffix(".json"), json.dumps(result, indent=1).encode() + b"\n")
    write_file(out.with_suffix(".md"), benches.markdown(rows, machine).encode())
    write_file(out.with_suffix(".html"), benches.page(rows, machine).encode())
    print(benches.markdown(rows, machine))
    print(f"written to {out}.json, .md and .html")


def _with_runtime(text: str) -> Settings:
    """The settings of MODEL or MODEL@RUNTIME; the model says on what it runs."""
    model, _, runtime = text.rpartition("@")
    if runtime not in ("onnxruntime", "openvino"):
        return load_settings(backend="auto", engine={"model": text, "sha256": ""})
    if backend.is_plan(Path(model)):
        raise AppError(f"{model} is a plan, which runs on the GPU: leave out @{runtime}.")
    return load_settings(backend="auto", engine={"model": model, "runtime": runtime, "sha256": ""})


def _batches(texts: list[str] | None) -> tuple[tuple[int, int, int], ...]:
    return tuple(_sizes(text) for text in texts or ["1/16/32"])


def _folder(timing_cache: str) -> Path | None:
    return {"off": None, "auto": default_folder()}.get(timing_cache, Path(timing_cache))


def _sizes(text: str) -> tuple[int, int, int]:
    parts = text.split("/")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise AppError(f"Invalid --batch {text!r}: use MIN/OPT/MAX or one number.")
    smallest, optimal, largest = map(int, parts * 3 if len(parts) == 1 else parts)
    return smallest, optimal, largest


def _watched(work, what: str):
    """Runs a build; on a terminal, TensorRT's phases are shown."""
    progress = BuildProgress()
    console = Console(stderr=True)
    if not console.is_terminal:
        return builder.watched(lambda: work(progress), progress)
    with Live(console=console, transient=True) as live:
        show = lambda: live.update(_phases(what, progress))  # noqa: E731
        return builder.watched(lambda: work(progress), progress, show)


def _phases(what: str, progress: BuildProgress) -> Text:
    lines = [what + (", cancelling at the next step" if progress.cancelled.is_set() else "")]
    for depth, (name, (done, of)) in enumerate(list(progress.phases.items()), 1):
        filled = 24 * done // max(1, of)
        lines.append(f"{'  ' * depth}{'█' * filled}{'·' * (24 - filled)} {done:>4}/{of:<4} {name}")
    return Text("\n".join(lines))


def _smaller(out: Path, onnx: Path) -> str:
    return f"{out}: {out.stat().st_size / 1e6:.1f} MB, {onnx.name} has {onnx.stat().st_size / 1e6:.1f}"


def _built(sidecar, ratio: float | None, where: str) -> str:
    again = f", {ratio:.2f} of the first build" if ratio is not None else ""
    return (
        f"{where}: {sidecar.plan_bytes / 1e6:.1f} MB, built in {sidecar.build_s:.1f} s{again} "
        f"(timing cache {sidecar.timing_cache}) by {sidecar.builder} for {sidecar.gpu}"
    )


def _onnx_state(plan: Path, sidecar) -> str:
    path = plan.parent / sidecar.onnx
    if not path.is_file():
        return ", which does not exist"
    return "" if sha256(path.read_bytes()) == sidecar.onnx_sha256 else ", which has changed since"


def _tensors(described: list[dict]) -> str:
    return ", ".join(f"{t['name']} {t['dtype']} {t['shape']}" for t in described)
