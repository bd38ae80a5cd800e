"""A group in the foreground: from options to settings, from settings to processes, shown and summed up to its end."""

import contextlib
import json
import os
from pathlib import Path
from typing import TextIO

from peoplecounter.common import sources as sources_module
from peoplecounter.common.backend import is_endpoint
from peoplecounter.common.engine import check_model
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, Refused
from peoplecounter.common.process.control import sources_to_decode
from peoplecounter.common.settings import CONFIG_VARIABLE, PREFIX, Settings, Source, Workers, load_settings
from peoplecounter.deploy.cli.display import DISPLAYED, JsonLines, display
from peoplecounter.deploy.group.circus import Group, source_name
from peoplecounter.deploy.group.subscribe import Follower, Tally


def overrides(
    sources: list[str],
    model: str | None,
    workers: list[str],
    backend: str | None,
    realtime: bool,
    loop: bool,
    run_dir: Path | None,
) -> dict[str, str]:
    """The command's options as environment variables, the way every service reads them."""
    changes: dict[str, str] = {}
    named: dict[str, dict] = {}
    for argument in sources:
        name, equals, url = argument.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            name, url = source_name(argument, set(named)), argument
        if "://" not in url and not url.startswith("/dev/"):
            url = str(Path(url).absolute())
        named[name] = {"url": url, "realtime": realtime, "loop": loop}
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
        if service not in Workers.model_fields or not count.isdigit():
            raise Refused(f"--workers {pair} is not SERVICE=N with a SERVICE of {', '.join(Workers.model_fields)}.")
        changes[f"WORKERS__{service.upper()}"] = count
    return {PREFIX + key: value for key, value in changes.items()}


def configure(config: Path | None, changes: dict[str, str]) -> tuple[Settings, dict[str, str]]:
    """(validated settings, environment for the services); a --config file and options win over the environment."""
    if config:
        changes = {CONFIG_VARIABLE: str(config.absolute()), **changes}
    os.environ.update(changes)
    settings = load_settings()
    if not settings.sources:
        raise Refused("There is no source: name files or URLs, or a --config with a [sources.NAME] table.")
    for name, source in settings.sources.items():
        check_source(name, source)
    check_model(settings)  # so that a wrong model is said once, before anything is started
    return settings, dict(os.environ)


def check_source(name: str, source: Source) -> None:
    if "://" not in source.url and not Path(source.url).exists():
        raise Refused(f"The source {name!r} is {source.url}, which does not exist.", NO_INPUT)


def run_group(
    settings: Settings,
    environment: dict[str, str],
    as_json: bool,
    out: Path | None,
    truth: dict[int, int] | None = None,
) -> tuple[dict, int]:
    """Runs a group to its end, showing it; returns (summary, exit code)."""
    screen, tally, live = display(as_json), Tally(), set()
    if not isinstance(screen, JsonLines):
        environment = {PREFIX + "LOG_LEVEL": "warning", **environment}
    lines = _open(out) if out else None

    def stop_if_ended() -> None:
        """When every source has ended, and all that was counted of them is here; where none is there, one may come."""
        there = sources_module.known(settings)
        if there and tally.ended >= there.keys() and not any(sources_to_decode(settings)):
            group.stop()

    group = Group(settings, environment, screen.say, stop_if_ended)
    also = f" and {settings.fusion.publish}" if settings.fusion.publish else ""
    screen.say(f"counts on {settings.publish}{also}")

    def on_message(kind: str, name: str, content: dict) -> None:
        tally.add(kind, name, content)
        screen.show(kind, name, content)
        if lines and kind == "counts":
            lines.write(json.dumps(content, separators=(",", ":")) + "\n")
            lines.flush()
        if kind == "status":
            with contextlib.suppress(Refused):  # a file that is none of ours, fusion says so
                live.update(name for name, change in sources_module.known(settings).items() if change.source.live)
            if content["state"] == "ended":
                stop_if_ended()

    follower = Follower(settings.publish, DISPLAYED, on_message, on_error=group.stop)
    try:
        group.run()
    finally:
        follower.close()
        screen.close()
    if isinstance(follower.error, BrokenPipeError):  # `run … | head`: nobody reads us any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif isinstance(follower.error, OSError):
        raise Refused(f"Counts cannot be written to {out}: {follower.error.strerror}.", SOFTWARE)
    elif follower.error:
        raise follower.error
    summary = tally.summary(truth)
    summary["restarts"] = group.restarts
    summary["budgets"] = tally.budgets(settings.budgets.by_name, live)
    return summary, group.exit_code


def _open(out: Path) -> TextIO:
    try:
        return out.open("w")
    except OSError as error:
        raise Refused(f"Counts cannot be written to {out}: {error.strerror}.", NO_INPUT) from None
