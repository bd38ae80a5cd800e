"""The commands of `peoplecounter`. A command that fails prints one error message and ends with its exit code."""

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from peoplecounter.common import __version__
from peoplecounter.common.errors import AppError
from peoplecounter.common.keys import CHARACTERS, key_pair
from peoplecounter.common.logs import Level
from peoplecounter.common.settings import PREFIX, SourceSettings, section_settings
from peoplecounter.common.sources import absolute_url
from peoplecounter.deploy.cli import dashboard_commands, engine_commands, history_commands
from peoplecounter.deploy.cli.display import (
    DISPLAYED,
    ProcessStates,
    display,
    process_lines,
    source_lines,
    summary_lines,
)
from peoplecounter.deploy.cli.options import AsJson, Config, RunDir
from peoplecounter.deploy.group import client, scaling, source_changes
from peoplecounter.deploy.group.foreground import configure, overrides, run_group, with_dashboard
from peoplecounter.deploy.group.subscribe import POLL_S, messages
from peoplecounter.deploy.report import crossings, evaluate, track_scores

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Counts people in video."
)
models = typer.Typer(invoke_without_command=True, help="Models to count with: without a command, those that are known.")
app.add_typer(models, name="models")
app.add_typer(engine_commands.app, name="engine")
source_app = typer.Typer(no_args_is_help=True, help="Add, remove and list the sources of a running group.")
app.add_typer(source_app, name="source")
app.add_typer(history_commands.line_app, name="line")
app.add_typer(history_commands.zone_app, name="zone")
app.add_typer(dashboard_commands.app, name="dashboard")
app.command()(history_commands.history)
app.command()(history_commands.correct)

install_app = typer.Typer(no_args_is_help=True, help="Install a group as services of this machine.")
app.add_typer(install_app, name="install")
uninstall_app = typer.Typer(no_args_is_help=True, help="Undo an install.")
app.add_typer(uninstall_app, name="uninstall")

SILENT_S = 3.0  # until `watch` says that nothing is published
Tolerance = Annotated[float, typer.Option(min=0, help="Between a crossing and its mark, s.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"peoplecounter {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Counts people in video."""


@app.command()
def run(
    source: Annotated[
        list[str] | None, typer.Argument(help="Files or URLs, or NAME=URL; in addition to those of --config.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="ONNX detector, TensorRT plan, or tcp://HOST:PORT of a server. Default: the demo's model."),
    ] = None,
    workers: Annotated[
        list[str] | None, typer.Option(help="Number of processes of a service, e.g. infer_tiles=2.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play files at their own rate and drop late frames.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Restart files when they end.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write every count to this file, one JSON object a line.")] = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="With --out, write the boxes of each frame, too.")] = False,
    events: Annotated[
        Path | None, typer.Option(help="Write every crossing and visit to this file, one JSON object a line.")
    ] = None,
    start_time: Annotated[
        str | None, typer.Option(help="When a file begins, e.g. 2026-11-26T08:00:00. Default: now.")
    ] = None,
    config: Config = None,
    run_dir: Annotated[Path | None, typer.Option(help="Private directory of sockets and shared memory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a group and show its counts until all sources have ended, or until Ctrl-C."""
    changes = overrides(source or [], model, workers or [], backend, realtime, loop, run_dir, start_time)
    settings, environment = with_dashboard(*configure(config, changes))
    if boxes and not out:
        raise AppError("--boxes writes into the file of --out: give one.")
    summary, code = run_group(settings, environment, as_json, out, boxes=boxes, events=events)
    if as_json:
        print(json.dumps(summary), flush=True)
    elif summary["frames"] or not code:
        print("\n".join(["", *summary_lines(summary)]), flush=True)
    if summary["problem"]:
        raise AppError(f"{summary['problem']}.", code)
    raise typer.Exit(code)


@app.command()
def watch(
    endpoint: Annotated[
        str | None, typer.Argument(help="Where counts are published. Default: this user's group.")
    ] = None,
    config: Config = None,
    run_dir: RunDir = None,
    key: Annotated[Path | None, typer.Option(help="File with your secret key, for an endpoint with CURVE.")] = None,
    server_key: Annotated[str | None, typer.Option(help="Public key of the group at that endpoint.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the counts of a running group until Ctrl-C."""
    endpoint = endpoint or client.find_group(config, run_dir).settings.publish
    keys = _keys(key, server_key)
    screen, processes, silent_s = display(as_json), ProcessStates(), 0.0
    try:
        for message in messages(endpoint, (*DISPLAYED, "service"), _stop_event(), keys):
            if message is not None:
                silent_s = 0.0
                kind, name, content = message
                if kind != "service":
                    screen.show(kind, name, content)
                elif line := processes.change(name, content["state"]):
                    screen.say(line)
                continue
            before_s, silent_s = silent_s, silent_s + POLL_S
            if before_s < SILENT_S <= silent_s:  # a running group publishes something every second
                hint = " Its subscribers file must contain your public key." if keys else ""
                screen.say(f"Nothing is published on {endpoint}: waiting for a running group.{hint}")
    finally:
        screen.close()


@app.command()
def ps(config: Config = None, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show the processes of a running group: pids, restarts, rings, leases, drops."""
    rows = client.process_rows(client.find_group(config, run_dir))
    print(json.dumps(rows) if as_json else "\n".join(process_lines(rows)))


@app.command()
def restart(
    service: Annotated[str, typer.Argument(help="A service, e.g. infer_tiles, or one process, e.g. infer_tiles.0.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Restart a service of a running group. A process that does not answer is killed."""
    for line in client.restart(client.find_group(config, run_dir), service):
        print(line, flush=True)


@app.command()
def scale(
    service: Annotated[str, typer.Argument(help="preprocess, infer_global or infer_tiles.")],
    number: Annotated[int, typer.Argument(help="Number of processes.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Change the number of processes of a service until the group is restarted."""
    print(scaling.scale(client.find_group(config, run_dir), service, number))


@app.command()
def log(
    service: Annotated[str, typer.Argument(help="A service, e.g. infer_tiles, or one process, e.g. infer_tiles.0.")],
    level: Annotated[str, typer.Argument(help="debug, info, warning or error.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Set the minimum level that a running service logs, until it is restarted."""
    if level not in get_args(Level):
        raise AppError(f"Unknown level {level!r}: choose {', '.join(get_args(Level))}.")
    for name in client.set_level(client.find_group(config, run_dir), service, cast(Level, level)):
        print(f"{name}: log level {level}")


@app.command()
def keys(
    file: Annotated[Path, typer.Argument(help="File with a secret key; created, mode 0600, if it does not exist.")],
) -> None:
    """Print the public key of a key file: of a group for its subscribers, or of a subscriber for the group."""
    public, _ = key_pair(file, make=True)
    print(public.decode())


@app.command("eval")
def evaluate_command(
    counts: Annotated[Path, typer.Argument(help="JSON lines of `run --out`; with --crossings, of `run --events`.")],
    truth: Annotated[Path, typer.Argument(help="CSV with one row per person and a `frame` column.")],
    frames: Annotated[bool, typer.Option("--frames", help="Also print every frame.")] = False,
    boxes: Annotated[bool, typer.Option("--boxes", help="Also compare boxes; counts of `run --boxes`.")] = False,
    at_lines: Annotated[
        bool, typer.Option("--crossings", help="Compare crossings instead; truth: CSV with line, direction, at_s.")
    ] = False,
    tolerance: Tolerance = crossings.TOLERANCE_S,
    of_tracks: Annotated[
        bool, typer.Option("--tracks", help="Compare tracks instead; counts of `run --boxes`, truth with `person`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare counts with truth: mean absolute error, root mean square error, bias. Or crossings, or tracks."""
    if at_lines + of_tracks + (frames or boxes) > 1:
        raise AppError("--crossings, --tracks, and --frames or --boxes compare different things: use one of them.")
    if at_lines:
        found, true = crossings.read_crossings(counts), crossings.read_crossings(truth)
        result = crossings.compare_crossings(found, true, tolerance)
        print(json.dumps(result) if as_json else "\n".join(crossings.comparison_lines(result)))
    elif of_tracks:
        followed, people = track_scores.read_found_tracks(counts), track_scores.read_true_tracks(truth)
        result = track_scores.compare_tracks(followed, people)
        line = "{frames} frames: IDF1 {idf1:.3f}, HOTA {hota:.3f}, {switches} identity switches".format(**result)
        print(json.dumps(result) if as_json else line)
    else:
        _compare_counts(counts, truth, frames, boxes, as_json)


def _compare_counts(counts: Path, truth: Path, frames: bool, boxes: bool, as_json: bool) -> None:
    counted, true = evaluate.read_counts(counts), evaluate.read_truth(truth)
    result = evaluate.compare(counted, true)
    if result["frames"] < max(len(counted), len(true)):
        frames_of = f"{len(counted)} counted, {len(true)} with a truth, {result['frames']} compared"
        print(f"peoplecounter: some frames are in one file only: {frames_of}.", file=sys.stderr)
    if frames:
        for frame in sorted(counted.keys() & true.keys()):
            row = {"frame": frame, "count": counted[frame], "truth": true[frame]}
            print(json.dumps(row) if as_json else "frame {frame:>6}  count {count:>4}  truth {truth:>4}".format(**row))
    if boxes:
        result["boxes"] = evaluate.compare_boxes(evaluate.read_boxes(counts), evaluate.read_true_boxes(truth))
    if as_json:
        print(json.dumps(result))
        return
    print("{frames} frames: MAE {mae:.3f}, RMSE {rmse:.3f}, bias {bias:+.3f} people".format(**result))
    if boxes:
        print(
            "a frame: {people:.2f} people, {matched:.2f} matched, {missed:.2f} missed; boxes besides: "
            "{duplicate:.2f} duplicates, {part:.2f} parts of a person, {without_truth:.2f} without truth".format(
                **result["boxes"]
            )
        )


SourceName = Annotated[str, typer.Argument(help="File, URL, or name of a source in the settings.")]
Model = Annotated[str | None, typer.Option(help="ONNX detector or TensorRT plan. Default: that of the settings.")]


@app.command("views")
def show_views(
    source: SourceName,
    model: Model = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to draw the views into.")] = Path("views.png"),
    config: Config = None,
) -> None:
    """Show into which views the frames of a source are cut, and what each level costs here."""
    from peoplecounter.deploy.report import tuning

    print("\n".join(tuning.show_views(source, model, out, client.read_settings(config))))


@app.command()
def tune(
    source: SourceName,
    model: Model = None,
    other: Annotated[
        list[str] | None,
        typer.Option(help="The model for images of another size, see 'engine resize'. Repeat for more."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames to look at, spread over a file.")] = 200,
    truth: Annotated[Path | None, typer.Option(help="CSV with one row per person and a `frame` column.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to draw people into.")] = Path("tune.png"),
    config: Config = None,
) -> None:
    """Look at a source with every level of views, and recommend the fewest that count its people."""
    from peoplecounter.deploy.report import tuning

    print("\n".join(tuning.tune(source, model, other or [], frames, truth, out, client.read_settings(config))))


@app.command()
def validate(
    clip: Annotated[str, typer.Argument(help="File, or NAME=FILE for a source of the settings.")],
    config: Annotated[Path, typer.Option("--config", help="TOML file of settings, with the lines of the source.")],
    model: Model = None,
    speed: Annotated[float, typer.Option(min=0.05, max=4, help="Of the clip on the page; 1: as fast as it was.")] = 0.5,
    marks: Annotated[
        Path | None, typer.Option(help="CSV for the marks: line, direction, at_s. Default: NAME.marks.csv.")
    ] = None,
    page: Annotated[bool, typer.Option(help="With --no-page, compare with the marks that are in the file.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the page on 127.0.0.1. Default: any.")] = 0,
    tolerance: Tolerance = crossings.TOLERANCE_S,
) -> None:
    """Count the crossings of a clip, let a person mark them on a page, and show how well both agree."""
    from peoplecounter.deploy.report import validation

    validation.validate(clip, model, config, marks, page, speed, port, tolerance, _stop_event)


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="File written by telemetry.exporter = 'file'.")],
    frame: Annotated[str | None, typer.Option(help="SOURCE/SEQ. Default: the frames at p50 and p99.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write an HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where the milliseconds of a frame went, from process to process."""
    from rich.console import Console

    from peoplecounter.deploy.report import page, traces

    frames, damaged = traces.read(file)
    chosen = traces.choose(frames, frame)
    if as_json:
        drawn = [{"frame": title, "trace": one.trace, "spans": list(map(asdict, one.bars()))} for title, one in chosen]
        told = {"frames": len(frames), "damaged_lines": damaged, "ms": traces.stages(frames), "drawn": drawn}
        print(json.dumps(told))
    else:
        console = Console()
        for title, one in chosen:
            traces.draw(console, title, one)
        print("\n" + "\n".join(traces.lines(frames)))
    if damaged:
        print(f"peoplecounter: {damaged} lines of {file} could not be read.", file=sys.stderr)
    if out:
        page.write(out, traces.html(file, chosen, frames))
        print(f"written to {out}", file=sys.stderr)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="JSON files of benchmarks, or folders with them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("optimization_gains.html"),
) -> None:
    """Write a page with the gain of each optimization: tables, waterfalls, distributions."""
    from peoplecounter.deploy.report import gains, page

    page.write(out, gains.build(gains.read(results)))
    print(f"written to {out}")


@app.command()
def doctor(
    as_json: AsJson = False,
    warm: Annotated[bool, typer.Option(help="Compile the GPU's kernels for cameras of common sizes instead.")] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(help="With --warm: for this GPU, e.g. sm90, instead of the one here; repeatable."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="With --warm: the folder; otherwise this user's cache.")] = None,
) -> None:
    """Show what this machine can run, and what is missing."""
    if warm:
        from peoplecounter.common.settings import load_settings
        from peoplecounter.deploy.cli.warm import warm as compile_ahead

        print(compile_ahead(load_settings(), target or [], to))
        return
    if target or to:
        raise AppError("--target and --to go with --warm.")
    from peoplecounter.deploy.cli.doctor import report

    raise typer.Exit(report(as_json))


@app.command()
def demo(
    size: Annotated[str, typer.Option(help="1080p or 4k.")] = "1080p",
    folder: Annotated[Path, typer.Option(help="Folder for the clip, its truth and the summary.")] = Path(".demo"),
    as_json: AsJson = False,
) -> None:
    """Render a clip of a plaza, count its people with all five services, and compare with the exact truth."""
    from peoplecounter.deploy.demo.run import run_demo

    raise typer.Exit(run_demo(size, folder, as_json))


@source_app.command("add")
def add_source(
    name: Annotated[str, typer.Argument(help="Name of the source: letters, digits, - and _.")],
    url: Annotated[str, typer.Argument(help="File or URL.")],
    realtime: Annotated[bool, typer.Option("--realtime", help="Play a file at its own rate.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file again when it ends.")] = False,
    smallest_person_px: Annotated[
        float | None, typer.Option(help="Height of its smallest people, px; see 'peoplecounter tune'.")
    ] = None,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Add a source to a running group; it gets a decoder of its own."""
    views = {"smallest_person_px": smallest_person_px}
    source = section_settings(SourceSettings, url=absolute_url(url, Path()), realtime=realtime, loop=loop, views=views)
    print(source_changes.add(client.find_group(config, run_dir), name, source))


@source_app.command("remove")
def remove_source(name: str, config: Config = None, run_dir: RunDir = None) -> None:
    """Remove a source: its last frames are counted, then its decoder ends."""
    print(source_changes.remove(client.find_group(config, run_dir), name))


@source_app.command("list")
def list_sources(config: Config = None, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show the sources of a running group: state, frames, URL."""
    rows = source_changes.source_rows(client.find_group(config, run_dir))
    print(json.dumps(rows) if as_json else "\n".join(source_lines(rows)))


@source_app.command("share")
def share_sources(
    file: Annotated[
        Path, typer.Argument(help="TOML file with the cameras of all groups: [NAME] tables, as in settings.")
    ],
    host: Annotated[str, typer.Option(help="Host name of a group; {} stands for its number.")],
    own: Annotated[int, typer.Option(envvar="GROUP", help="Number of this group.")],
    groups_max: Annotated[int, typer.Option("--most", help="Maximum number of groups.")] = 64,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Count this group's share of a list of cameras, while groups come and go; see deploy/SCALING.md."""
    from peoplecounter.deploy.group.share import share

    share(client.find_group(config, run_dir), file, host, own, groups_max, _stop_event())


@app.command("bridge")
def bridge_command(
    kind: Annotated[str, typer.Argument(help="mqtt or nats.")],
    url: Annotated[
        str,
        typer.Argument(
            envvar="BROKER_URL", help="mqtt://USER:PASSWORD@HOST, mqtts://, nats:// or tls://; or $BROKER_URL."
        ),
    ],
    detections: Annotated[bool, typer.Option("--detections", help="Also forward boxes.")] = False,
    home_assistant: Annotated[
        bool, typer.Option("--home-assistant", help="Also make sources and areas devices of Home Assistant, by MQTT.")
    ] = False,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Forward what this machine's group publishes to a broker, until Ctrl-C or SIGTERM."""
    from peoplecounter.deploy.bridge import bridge

    bridge(client.find_group(config, run_dir).settings.publish, kind, url, _stop_event(), detections, home_assistant)


UnitName = Annotated[str, typer.Option(help="Name of the group: the prefix of its units.")]
Root = Annotated[Path, typer.Option(help="Write below this folder and do not notify systemd.")]


@install_app.command("systemd")
def install_systemd(
    config: Annotated[Path, typer.Option(help="TOML file of settings; it may be readable by root only.")],
    name: UnitName = "peoplecounter",
    user: Annotated[str | None, typer.Option(help="User of the services. Default: NAME, which is created.")] = None,
    root: Root = Path("/"),
) -> None:
    """Write systemd units for the services of these settings. Repeat it when sources or workers change."""
    from peoplecounter.deploy.systemd.install import install

    state = f"/var/lib/{name}"  # systemd's StateDirectory
    settings, _ = configure(config, {PREFIX + "SOURCES_DIR": f"{state}/sources"})
    if not settings.data_dir:
        settings = settings.model_copy(update={"data_dir": state})
    for path in install(settings, config, name, user or name, root):
        print(path)
    if root == Path("/"):
        print(f"\nNext: systemctl enable --now {name}.target")
        print(f"After a change of settings: systemctl restart {name}.target")


@uninstall_app.command("systemd")
def uninstall_systemd(name: UnitName = "peoplecounter", root: Root = Path("/")) -> None:
    """Stop the group and remove its units. Its user and /var/lib/NAME are kept."""
    from peoplecounter.deploy.systemd.install import uninstall

    for path in uninstall(name, root):
        print(f"removed {path}")


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the models that are known, how each is told from the others, and how it is exported."""
    from peoplecounter.deploy.engine import check

    if context.invoked_subcommand is None:
        print("\n".join(check.known_lines()))


@models.command("check")
def check_model(
    model: Annotated[Path, typer.Argument(help="ONNX file or TensorRT plan.")],
    image: Annotated[Path | None, typer.Option(help="Picture or video to try it on; default: a drawn plaza.")] = None,
    out: Annotated[Path, typer.Option(help="PNG to draw its boxes into.")] = Path("check.png"),
) -> None:
    """Say what a model is taken for, and draw the persons that it finds in a picture."""
    from peoplecounter.deploy.engine import check

    print("\n".join(check.check(model, image, out)))


@models.command()
def export(
    name: Annotated[str, typer.Argument(help="Name of the model, e.g. yolo26n.")] = "yolo26n",
    folder: Annotated[Path, typer.Option(help="Folder for the ONNX file.")] = Path(".models"),
    accept_agpl: Annotated[bool, typer.Option("--accept-agpl", help="Confirms that you have read the notice.")] = False,
) -> None:
    """Export a detector with Ultralytics (AGPL-3.0), in an environment of its own. Needs the internet."""
    from peoplecounter.deploy.engine.export import export as export_model

    export_model(name, folder, accept_agpl)


def _keys(key: Path | None, server_key: str | None) -> tuple[bytes, bytes, bytes] | None:
    """(the server's public key, the own public and secret key); None without options."""
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise AppError("Use --key and --server-key together: your secret key and the group's public key.")
    public, secret = key_pair(key)
    if len(server_key) != CHARACTERS or not server_key.isascii():
        raise AppError(
            f"--server-key is not a public key of {CHARACTERS} characters: 'peoplecounter keys' prints the group's."
        )
    return server_key.encode(), public, secret


def _stop_event() -> threading.Event:
    """An event that is set on Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_command() -> None:
    """Runs the command of sys.argv and exits with its code."""
    try:
        app()
    except AppError as error:
        print(f"peoplecounter: {error}", file=sys.stderr)
        sys.exit(error.code)
