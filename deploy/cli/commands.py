"""peoplecounter: the command line. Each command says what was wrong in one sentence and ends with its exit code."""

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from peoplecounter.common.errors import Refused
from peoplecounter.common.keys import CHARACTERS, key_pair
from peoplecounter.common.logs import Level
from peoplecounter.common.settings import PREFIX, Source
from peoplecounter.deploy.cli.display import DISPLAYED, Services, display, process_lines, source_lines, summary_lines
from peoplecounter.deploy.cli.engine_commands import app as engine
from peoplecounter.deploy.group import client, scaling, source_changes
from peoplecounter.deploy.group.foreground import configure, overrides, run_group
from peoplecounter.deploy.group.subscribe import POLL_S, messages
from peoplecounter.deploy.report import evaluate

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Counts people in video."
)
models = typer.Typer(no_args_is_help=True, help="Models to count with.")
app.add_typer(models, name="models")
app.add_typer(engine, name="engine")
source_app = typer.Typer(no_args_is_help=True, help="Cameras of a running group, that come and go.")
app.add_typer(source_app, name="source")

install_app = typer.Typer(no_args_is_help=True, help="Have the machine's supervisor run the group.")
app.add_typer(install_app, name="install")
uninstall_app = typer.Typer(no_args_is_help=True, help="Undo an install.")
app.add_typer(uninstall_app, name="uninstall")

SILENT_S = 3.0  # of silence until `watch` says so
RunDir = Annotated[Path | None, typer.Option(help="Run directory of the group.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print for machines: JSON, one object a line.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]


@app.command()
def run(
    source: Annotated[
        list[str] | None, typer.Argument(help="Files or URLs, or NAME=URL; those of --config as well.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="ONNX detector, TensorRT plan, or tcp://… of one. Default: the demo's, which knows only its plaza."
        ),
    ] = None,
    workers: Annotated[list[str] | None, typer.Option(help="Processes of a service, e.g. infer_tiles=2.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play files at their own rate, dropping late frames.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Start files again when they end.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write every count to this file, one JSON object a line.")] = None,
    config: Config = None,
    run_dir: Annotated[Path | None, typer.Option(help="Private directory of sockets and shared memory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the group, show its counts, end with a summary when all sources have ended (or on Ctrl-C)."""
    changes = overrides(source or [], model, workers or [], backend, realtime, loop, run_dir)
    settings, environment = configure(config, changes)
    summary, code = run_group(settings, environment, as_json, out)
    if as_json:
        print(json.dumps(summary), flush=True)
    elif summary["frames"] or not code:
        print("\n".join(["", *summary_lines(summary)]), flush=True)
    raise typer.Exit(code)


@app.command()
def watch(
    endpoint: Annotated[
        str | None, typer.Argument(help="Where counts are published; default: this user's group.")
    ] = None,
    config: Config = None,
    run_dir: RunDir = None,
    key: Annotated[
        Path | None, typer.Option(help="File with your secret key, for an endpoint that asks who you are.")
    ] = None,
    server_key: Annotated[str | None, typer.Option(help="Public key of the group that publishes there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the counts of a running group until Ctrl-C."""
    endpoint = endpoint or client.group(config, run_dir).settings.publish
    keys = _keys(key, server_key)
    screen, services, silent_s = display(as_json), Services(), 0.0
    try:
        for message in messages(endpoint, (*DISPLAYED, "service"), threading.Event(), keys):
            if message is not None:
                silent_s = 0.0
                kind, name, content = message
                if kind != "service":
                    screen.show(kind, name, content)
                elif sentence := services.change(name, content["state"]):
                    screen.say(sentence)
                continue
            before_s, silent_s = silent_s, silent_s + POLL_S
            if before_s < SILENT_S <= silent_s:  # a running group says something every second
                refused = ", and to take your key" if keys else ""
                screen.say(f"Nothing is published on {endpoint}: waiting for a group and its fusion to run{refused}.")
    except KeyboardInterrupt:
        pass
    finally:
        screen.close()


@app.command()
def ps(config: Config = None, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show the processes of a running group: pids, restarts, rings, leases, drops."""
    rows = client.table(client.group(config, run_dir))
    print(json.dumps(rows) if as_json else "\n".join(process_lines(rows)))


@app.command()
def restart(
    service: Annotated[str, typer.Argument(help="infer_tiles: all of them, one after the other; infer_tiles.0: one.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Restart a service of a running group while the others go on; who does not answer is killed."""
    for line in client.restart(client.group(config, run_dir), service):
        print(line, flush=True)


@app.command()
def scale(
    service: Annotated[str, typer.Argument(help="preprocess, infer_global or infer_tiles.")],
    number: Annotated[int, typer.Argument(help="How many processes there are to be.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Have more or fewer processes of a service, whoever supervises the group, until it is started anew."""
    print(scaling.scale(client.group(config, run_dir), service, number))


@app.command()
def log(
    service: Annotated[str, typer.Argument(help="A service, or one process of it.")],
    level: Annotated[str, typer.Argument(help="debug, info, warning or error.")],
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Set from which level on a running service logs, until it is restarted."""
    if level not in get_args(Level):
        raise Refused(f"The level {level!r} is unknown: choose {', '.join(get_args(Level))}.")
    for name in client.set_level(client.group(config, run_dir), service, level):
        print(f"{name} logs from {level} up")


@app.command()
def keys(
    file: Annotated[Path, typer.Argument(help="File with a secret key; made, for you alone, if it is new.")],
) -> None:
    """Print the public key of a key file: a group's, for its subscribers, or a subscriber's, for the group."""
    public, _ = key_pair(file, make=True)
    print(public.decode())


@app.command("eval")
def evaluate_command(
    counts: Annotated[Path, typer.Argument(help="JSON lines of `run --out`.")],
    truth: Annotated[Path, typer.Argument(help="CSV with one row a person and a `frame` column.")],
    frames: Annotated[bool, typer.Option("--frames", help="Also print every frame.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare counts with truth: mean absolute error, root mean square error, bias."""
    counted, true = evaluate.read_counts(counts), evaluate.read_truth(truth)
    result = evaluate.compare(counted, true)
    if result["frames"] < max(len(counted), len(true)):
        left = f"{len(counted)} counted, {len(true)} with a truth, {result['frames']} compared"
        print(f"peoplecounter: not every frame is in both files: {left}.", file=sys.stderr)
    if frames:
        for frame in sorted(counted.keys() & true.keys()):
            row = {"frame": frame, "count": counted[frame], "truth": true[frame]}
            print(json.dumps(row) if as_json else "frame {frame:>6}  count {count:>4}  truth {truth:>4}".format(**row))
    if as_json:
        print(json.dumps(result))
    else:
        print("{frames} frames: MAE {mae:.3f}, RMSE {rmse:.3f}, bias {bias:+.3f} people".format(**result))


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="What telemetry.exporter = 'file' has written.")],
    frame: Annotated[str | None, typer.Option(help="SOURCE/SEQ; default: the frames at p50 and p99.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Draw it as an HTML page, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw where the milliseconds of a frame went, from process to process."""
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
    results: Annotated[list[Path], typer.Argument(help="JSON files of benchmarks, or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("optimization_gains.html"),
) -> None:
    """Make a page of what each optimization gained: tables, waterfalls, distributions."""
    from peoplecounter.deploy.report import gains, page

    page.write(out, gains.build(gains.read(results)))
    print(f"written to {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can run and what is missing."""
    from peoplecounter.deploy.cli.doctor import report

    raise typer.Exit(report(as_json))


@app.command()
def demo(
    size: Annotated[str, typer.Option(help="1080p or 4k.")] = "1080p",
    folder: Annotated[Path, typer.Option(help="Where the clip, its truth and the summary go.")] = Path(".demo"),
    as_json: AsJson = False,
) -> None:
    """Render a plaza full of people, count them with all five services, and compare with the truth."""
    from peoplecounter.deploy.demo.run import run_demo

    raise typer.Exit(run_demo(size, folder, as_json))


@source_app.command("add")
def add_source(
    name: Annotated[str, typer.Argument(help="Its name: letters, digits, - and _.")],
    url: Annotated[str, typer.Argument(help="File or URL.")],
    realtime: Annotated[bool, typer.Option("--realtime", help="Play a file at its own rate.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file again when it ends.")] = False,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Count another source from now on, with a decoder of its own; the others go on."""
    source = Source(url=url if "://" in url else str(Path(url).absolute()), realtime=realtime, loop=loop)
    print(source_changes.add(client.group(config, run_dir), name, source))


@source_app.command("remove")
def remove_source(name: str, config: Config = None, run_dir: RunDir = None) -> None:
    """End a source: its last frames are counted, then its decoder ends."""
    print(source_changes.remove(client.group(config, run_dir), name))


@source_app.command("list")
def list_sources(config: Config = None, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show the sources of a running group: state, frames, who decodes them."""
    rows = source_changes.table(client.group(config, run_dir))
    print(json.dumps(rows) if as_json else "\n".join(source_lines(rows)))


@source_app.command("share")
def share_sources(
    file: Annotated[Path, typer.Argument(help="TOML file of all groups' cameras: [NAME] tables, as in settings.")],
    host: Annotated[str, typer.Option(help="Host name of group number {}.")],
    own: Annotated[int, typer.Option(envvar="GROUP", help="Number of this group.")],
    most: Annotated[int, typer.Option(help="Groups there can be.")] = 64,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Count this group's share of the cameras of many groups, as groups come and go; see deploy/SCALING.md."""
    from peoplecounter.deploy.group.share import share

    share(client.group(config, run_dir), file, host, own, most, _until_told())


@app.command("bridge")
def bridge_command(
    kind: Annotated[str, typer.Argument(help="mqtt or nats.")],
    url: Annotated[
        str,
        typer.Argument(
            envvar="BROKER_URL", help="mqtt://USER:PASSWORD@HOST, mqtts://, nats:// or tls://; or $BROKER_URL."
        ),
    ],
    detections: Annotated[bool, typer.Option("--detections", help="Boxes as well.")] = False,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Hand on what this machine's group publishes to a broker, until Ctrl-C or SIGTERM."""
    from peoplecounter.deploy.bridge import bridge

    bridge(client.group(config, run_dir).settings.publish, kind, url, _until_told(), detections)


UnitName = Annotated[str, typer.Option(help="Of the group: begins its units' names, one for each GPU.")]
Root = Annotated[Path, typer.Option(help="Write below this folder instead, and tell no systemd.")]


@install_app.command("systemd")
def install_systemd(
    config: Annotated[Path, typer.Option(help="TOML file of settings; root's alone will do.")],
    name: UnitName = "peoplecounter",
    user: Annotated[str | None, typer.Option(help="Whom the services run as. Default: NAME, who is made.")] = None,
    root: Root = Path("/"),
) -> None:
    """Write systemd units from topology and settings; again after a change of what there is to run."""
    from peoplecounter.deploy.systemd.install import install

    settings, _ = configure(config, {PREFIX + "SOURCES_DIR": f"/var/lib/{name}/sources"})
    for path in install(settings, config, name, user or name, root):
        print(path)
    if root == Path("/"):
        print(f"\nNow: systemctl enable --now {name}.target; afterwards, for changed settings: systemctl restart it")


@uninstall_app.command("systemd")
def uninstall_systemd(name: UnitName = "peoplecounter", root: Root = Path("/")) -> None:
    """Stop the group and remove its units; its user and /var/lib/NAME stay."""
    from peoplecounter.deploy.systemd.install import uninstall

    for path in uninstall(name, root):
        print(f"removed {path}")


@models.command()
def export(
    name: Annotated[str, typer.Argument(help="e.g. yolo26n")] = "yolo26n",
    folder: Annotated[Path, typer.Option(help="Where the ONNX file goes.")] = Path(".models"),
    accept_agpl: Annotated[bool, typer.Option("--accept-agpl", help="You have read the notice.")] = False,
) -> None:
    """Export a real detector with Ultralytics, in an environment of its own (AGPL-3.0; needs the internet)."""
    from peoplecounter.deploy.engine.export import export as export_model

    export_model(name, folder, accept_agpl)


def _keys(key: Path | None, server_key: str | None) -> tuple[bytes, bytes, bytes] | None:
    """(the server's public key, one's own public and secret one), both given or none."""
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise Refused("--key and --server-key belong together: who you are, and who publishes.")
    public, secret = key_pair(key)
    if len(server_key) != CHARACTERS or not server_key.isascii():
        raise Refused(
            f"--server-key is no public key of {CHARACTERS} characters: the group's 'peoplecounter keys' prints it."
        )
    return server_key.encode(), public, secret


def _until_told() -> threading.Event:
    """Set on Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_command() -> None:
    try:
        app()
    except Refused as refusal:
        print(f"peoplecounter: {refusal}", file=sys.stderr)
        sys.exit(refusal.code)
