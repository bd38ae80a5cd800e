"""A group in the foreground: from options to settings, from settings to processes, shown and summed up to its end."""

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from peoplecounter.common.backend import is_endpoint
from peoplecounter.common.engine.loading import check_model
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.process.control import sources_to_decode
from peoplecounter.common.settings import (
    CONFIG_VARIABLE,
    PREFIX,
    Settings,
    SourceSettings,
    WorkerSettings,
    load_settings,
)
from peoplecounter.common.sources import absolute_url, is_missing, known_sources
from peoplecounter.deploy.cli.display import DISPLAYED, JsonLines, display
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.circus import GroupSupervisor, source_name
from peoplecounter.deploy.group.subscribe import Follower, Tally

EVENTS = ("crossings", "zones")
LOOK_S = 0.3
PORTS = range(8650, 8660)  # of dashboards, so that one has the same address each time


def overrides(
    sources: list[str],
    model: str | None,
    workers: list[str],
    backend: str | None,
    realtime: bool,
    loop: bool,
    run_dir: Path | None,
    start_time: str | None = None,
) -> dict[str, str]:
    """The command's options as environment variables, which every service reads."""
    changes: dict[str, str] = {}
    named: dict[str, dict] = {}
    for argument in sources:
        name, equals, url = argument.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum() or Path(argument).exists():
            name, url = source_name("stdin" if argument == "-" else argument, set(named)), argument
        named[name] = {"url": absolute_url(url, Path()), "realtime": realtime, "loop": loop}
    for option, given in (("--start-time", start_time), ("--realtime", realtime), ("--loop", loop)):
        if given and not named:
            key = option.strip("-").replace("-", "_")
            raise AppError(f"{option} is for the files of this command: in a --config, set {key} of a source.")
    if start_time:
        for one in named.values():
            one["start_time"] = start_time
    if named:
        changes["SOURCES"] = json.dumps(named)
    if model:
        changes["ENGINE__MODEL"] = model if is_endpoint(model) else str(Path(model).absolute())
    if backend:
        changes["BACKEND"] = backend
    if run_dir:
        changes["RUN_DIR"] = str(run_dir.absolute())
    for pair in workers:
        service, _, count = pair.partition("=")
        if service not in WorkerSettings.model_fields or not count.isdigit():
            services = ", ".join(WorkerSettings.model_fields)
            raise AppError(f"Invalid --workers {pair!r}: use SERVICE=N, where SERVICE is one of {services}.")
        changes[f"WORKERS__{service.upper()}"] = count
    return {PREFIX + key: value for key, value in changes.items()}


def configure(config: Path | None, changes: dict[str, str]) -> tuple[Settings, dict[str, str]]:
    """(validated settings, environment for the services). A --config file and options override the environment."""
    if config:
        changes = {CONFIG_VARIABLE: str(config.absolute()), **changes}
    os.environ.update(changes)
    settings = load_settings()
    if not settings.sources:
        raise AppError("No source is given: pass files or URLs, or use --config with a [sources.NAME] table.")
    for name, source in settings.sources.items():
        check_source(name, source)
    check_model(settings)  # so that a wrong model is reported once, before anything is started
    return settings, dict(os.environ)


def with_dashboard(settings: Settings, environment: dict[str, str]) -> tuple[Settings, dict[str, str]]:
    """The same, with a free port of 127.0.0.1 where dashboard.listen is "auto": it stays when the process restarts."""
    if settings.dashboard.listen != "auto":
        return settings, environment
    environment = {**environment, PREFIX + "DASHBOARD__LISTEN": f"127.0.0.1:{_free_port()}"}
    os.environ.update(environment)
    return load_settings(), environment


def _free_port() -> int:
    for port in (*PORTS, 0):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return tried.getsockname()[1]
    raise AppError('No port of 127.0.0.1 is free for the dashboard: set dashboard.listen = "".')


def check_source(name: str, source: SourceSettings) -> None:
    """Raises AppError for a file that does not exist; a USB camera may be plugged in later."""
    if is_missing(source):
        raise AppError(f"The file {source.url} of the source {name!r} does not exist.", NO_INPUT)


def run_group(
    settings: Settings,
    environment: dict[str, str],
    as_json: bool,
    out: Path | None,
    truth: dict[int, int] | None = None,
    boxes: bool = False,
    events: Path | None = None,
    show_lines: bool = True,
) -> tuple[dict, int]:
    """Runs a group to its end and shows its counts; returns (summary, exit code). `boxes`: `out` gets them, too.

    `events`: file for what happens at lines and zones, one JSON object a line. `show_lines`: what they count is shown.

    The summary's `problem` says what a file has lost; then the exit code is not 0.
    """
    screen, tally = display(as_json), Tally()
    live: set[str] = set()  # names of live sources
    latest: dict[str, dict] = {}  # source -> its latest count
    if not isinstance(screen, JsonLines):
        environment = {PREFIX + "LOG_LEVEL": "warning", **environment}
    lines, event_lines = (_open(path) if path else None for path in (out, events))

    def stop_if_ended() -> None:
        """Stops when every source has ended and its last count was received; without a source, one may be added."""
        sources = known_sources(settings)
        if sources and tally.ended >= sources.keys() and not any(sources_to_decode(settings)):
            group.stop()

    group = GroupSupervisor(settings, environment, screen.say, stop_if_ended)
    also = f" and {settings.fusion.publish}" if settings.fusion.publish else ""
    screen.say(f"counts on {settings.publish}{also}")
    done = threading.Event()
    if settings.dashboard.address:
        threading.Thread(target=_tell_url, args=(settings, screen.say, done), daemon=True).start()

    def on_message(kind: str, name: str, content: dict) -> None:
        if kind in EVENTS:
            if event_lines:
                event_lines.write(json.dumps({"kind": kind, **content}, separators=(",", ":")) + "\n")
                event_lines.flush()
            return
        if lines and kind == ("detections" if boxes else "counts"):
            lines.write(json.dumps(latest.get(name, {}) | content, separators=(",", ":")) + "\n")
            lines.flush()
        if kind in ("areas", "alerts"):
            if show_lines:
                screen.show(kind, name, content)
            return
        if kind == "detections":
            return
        if kind == "counts":
            latest[name] = content  # its boxes follow
        tally.add(kind, name, content)
        shown = content if show_lines else {key: of for key, of in content.items() if key not in ("lines", "zones")}
        screen.show(kind, name, shown)
        if kind == "status":
            if content["live"]:
                live.add(name)
            if content["state"] == "ended":
                stop_if_ended()

    topics = (*DISPLAYED, *EVENTS, "detections") if boxes else (*DISPLAYED, *EVENTS)
    follower = Follower(settings.publish, topics, on_message, on_error=group.stop)
    try:
        group.run()
    finally:
        done.set()
        follower.close()
        screen.close()
    if isinstance(follower.error, BrokenPipeError):  # `run … | head`: the reader has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif isinstance(follower.error, OSError):
        raise AppError(f"Counts or events cannot be written: {follower.error.strerror}.", SOFTWARE)
    elif follower.error:
        raise follower.error
    summary = tally.summary(truth)
    summary["restarts"] = group.restarts
    summary["budgets"] = tally.budgets(settings.budgets.by_name, live)
    problem, code = tally.lost(live) or (None, 0)
    summary["problem"] = problem
    return summary, group.exit_code or code


def _tell_url(settings: Settings, say: Callable[[str], None], done: threading.Event) -> None:
    """Says where the dashboard is as soon as it answers: a port may belong to another group's."""
    group = client.RunningGroup(settings)
    while not done.wait(LOOK_S):
        pid = client.owners(settings.run_dir).get("dashboard.0")
        answer = client.describe(group, "dashboard.0", pid) if pid else None
        if answer and answer.ready:
            return say(f"pictures on {answer.about}")


def _open(out: Path) -> TextIO:
    try:
        return out.open("w")
    except OSError as error:
        raise AppError(f"{out} cannot be written: {error.strerror}.", NO_INPUT) from None
