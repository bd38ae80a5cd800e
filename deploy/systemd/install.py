"""Writes the systemd units of a group, and removes them. Their text is in the .in files of this folder."""

import contextlib
import os
import pwd
import shutil
import sys
from pathlib import Path
from string import Template

from peoplecounter.common import backend
from peoplecounter.common.counting import check_name
from peoplecounter.common.engine.loading import check_model
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.settings import Settings
from peoplecounter.common.sources import known_sources
from peoplecounter.common.topology import SERVICES, ServiceRow
from peoplecounter.deploy.group.circus import process_count
from peoplecounter.deploy.group.shell import call

HERE = Path(__file__).parent
UNITS = Path("etc/systemd/system")
HIDDEN = [Path(p) for p in ("/home", "/root", "/run/user", "/tmp", "/var/tmp")]  # hidden by the units' hardening
STATE = Path("/var/lib")  # of StateDirectory
WRITERS = ("fusion", "history", "dashboard")  # of data_dir
MEMORY = {"cpu": "4G", "cuda": "24G"}  # MemoryMax of one process, its ring included
DEVICES = {
    "cpu": "PrivateDevices=yes\nMemoryDenyWriteExecute=yes",  # not for cuda: the driver and the compiler write code
    "cuda": "DevicePolicy=closed\n" + "\n".join(f"DeviceAllow=char-nvidia{n} rw" for n in ("", "-uvm", "-caps")),
}
USB_CAMERAS = "DevicePolicy=closed\nDeviceAllow=char-video4linux rw\nSupplementaryGroups=video"


def install(settings: Settings, config: Path, name: str, user: str, root: Path) -> list[Path]:
    """Writes the units, the wants of the target, and the user if it does not exist; returns the written paths.

    `root`: "/" for this machine, whose systemd is then reloaded; otherwise a folder that becomes a machine's root.
    Raises AppError for settings that a unit could not run with.
    """
    check_name(name, "group")
    check_root(root)
    check(settings, config)
    files = units(settings, config, name, user)
    folder = root / UNITS
    written = []
    try:
        if root == Path("/") and (folder / f"{name}-fusion.service").exists():  # see remove_units
            call("systemctl", "stop", f"{name}-fusion.service")
        remove_units(root, name)
        for unit, text in files.items():
            written.append(_write(folder / unit, text))
        for unit in instances(settings, name):
            link = folder / f"{name}.target.wants" / unit
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path("..") / template(unit))
            written.append(link)
        if user == name and not _is_user(user):
            line = f'u {user} - "counts people" /var/lib/{name}\n'
            written.append(_write(root / "etc/sysusers.d" / f"{name}.conf", line))
            if root == Path("/"):
                call("systemd-sysusers", str(written[-1]))
    except OSError as error:
        raise AppError(f"{error.filename} cannot be written: {error.strerror}.", NO_INPUT) from None
    if root == Path("/"):
        call("systemctl", "daemon-reload")
    return written


def uninstall(name: str, root: Path) -> list[Path]:
    """Stops the group and removes its units, run directory and cache; keeps its user and sources added at run time."""
    check_name(name, "group")
    check_root(root)
    if not (root / UNITS / f"{name}.target").exists():
        raise AppError(f"{root / UNITS}/{name}.target does not exist: use --name to name the group.", NO_INPUT)
    if root == Path("/"):
        call("systemctl", "disable", "--now", f"{name}.target")
        call("systemctl", "stop", *(f"{name}-*.service",))
    removed = remove_units(root, name)
    if root == Path("/"):
        call("systemctl", "daemon-reload")
        for folder in ("/run", "/var/cache"):
            shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
    return removed


def units(settings: Settings, config: Path, name: str, user: str) -> dict[str, str]:
    """File name -> text of every unit."""
    kind = backend.resolve(settings)
    fill = {
        "name": name,
        "user": user,
        "config": str(config.absolute()),
        "python": sys.executable,
        "memory": MEMORY[kind],
        "data": settings.data_dir,
        "sources": ", ".join(known_sources(settings)) or "no source yet",
        "mps": backend.mps_binary() or "",
    }
    files = {f"{name}.target": _fill("target", fill)}
    if kind == "cuda" and settings.mps == "auto" and fill["mps"]:
        files[f"{name}-mps.service"] = _fill("mps", fill)
    for service in started_services(settings):
        alone = not needs_network(service, settings)
        files[f"{stem(service, name)}.service"] = _fill(
            "service",
            fill
            | {
                "module": service.module,
                "does": service.does.replace("->", "to"),
                "writes": f"ReadWritePaths={settings.data_dir}" if _writes_elsewhere(service, settings, name) else "",
                "devices": _devices(kind, service, settings),
                "instance": "" if service.each == "group" else " %i",
                "private_network": "yes" if alone else "no",
                "families": "AF_UNIX" if alone else "AF_UNIX AF_INET AF_INET6",
            },
        )
    return files


def started_services(settings: Settings) -> list[ServiceRow]:
    """All services but those that these settings do not want."""
    return [row for row in SERVICES if not row.optional or process_count(row, settings)]


def _writes_elsewhere(service: ServiceRow, settings: Settings, name: str) -> bool:
    """True for a service that writes into a data_dir outside of systemd's StateDirectory."""
    return service.name in WRITERS and not Path(settings.data_dir or STATE / name).is_relative_to(STATE / name)


def _devices(kind: str, service: ServiceRow, settings: Settings) -> str:
    """Which devices a service may open: none, the GPU, and a decoder the USB cameras if the settings name one."""
    cameras = any(source.url.startswith("/dev/video") for source in settings.sources.values())
    if service.name.startswith("infer_") and backend.may_use_openvino(settings):
        return DEVICES[kind].replace("\nMemoryDenyWriteExecute=yes", "")  # it writes code
    if service.name != "decoder" or not cameras:
        return DEVICES[kind]
    return DEVICES[kind].replace("PrivateDevices=yes\n", "") + "\n" + USB_CAMERAS


def instances(settings: Settings, name: str) -> list[str]:
    """The units that the target starts: one per source, per worker, or per group."""
    mps = f"{name}-mps.service"
    started = [mps] if mps in units(settings, Path("/"), name, name) else []
    for service in started_services(settings):
        if service.each == "source":
            names = list(known_sources(settings))
        else:
            names = [str(i) for i in range(process_count(service, settings))]
        started += [f"{stem(service, name)}{'' if service.each == 'group' else i}.service" for i in names]
    return started


def stem(service: ServiceRow, name: str) -> str:
    """A unit's name up to its instance: peoplecounter-infer-tiles@, peoplecounter-history."""
    return f"{name}-{service.name.replace('_', '-')}" + ("" if service.each == "group" else "@")


def template(unit: str) -> str:
    """The file of a unit: a@1.service is an instance of a@.service."""
    head, at, _ = unit.partition("@")
    return f"{head}@.service" if at else unit


def needs_network(service: ServiceRow, settings: Settings) -> bool:
    """False for a service that communicates only with the other services."""
    if service.name in ("decoder", "dashboard") or settings.telemetry.exporter == "otlp":
        return True
    if service.name == "fusion":
        webhooks = any(alert.webhook for alert in settings.alerts.values())
        return bool(settings.fusion.publish) or settings.telemetry.metrics or webhooks
    if service.name == "history":
        return not settings.history_url.startswith("sqlite")
    return service.name.startswith("infer_") and backend.is_endpoint(settings.engine.model)


def check(settings: Settings, config: Path) -> None:
    """Raises AppError when a service that runs as another user could not start with these settings."""
    check_model(settings)
    seen = {"the interpreter": sys.executable, "the interpreter's folder": sys.base_prefix}
    seen |= {
        "engine.model": "" if backend.is_endpoint(settings.engine.model) else settings.engine.model,
        "fusion.key": settings.fusion.key,
        "fusion.subscribers": settings.fusion.subscribers,
        "data_dir": settings.data_dir,
        "dashboard.token_file": settings.dashboard.token_file,
        "dashboard.tls_certificate": settings.dashboard.tls_certificate,
        "dashboard.tls_key": settings.dashboard.tls_key,
    }
    data = settings.data_dir
    if data and (set(data) & set(" %\"'\\") or (not Path(data).is_dir() and not Path(data).is_relative_to(STATE))):
        raise AppError(
            f"The data_dir {data} does not exist, or systemd cannot name it: make a plain folder of mode 0700."
        )
    seen |= {f"the source {n}": s.url for n, s in settings.sources.items() if "://" not in s.url}
    for what, path in seen.items():
        if not path:
            continue
        if not Path(path).is_absolute():
            raise AppError(f"{what[0].upper()}{what[1:]} {path} is a relative path: units need an absolute one.")
        hidden = next((p for p in HIDDEN if Path(path).resolve().is_relative_to(p)), None)
        if hidden:
            raise AppError(
                f"{what[0].upper()}{what[1:]} {path} lies in {hidden}, which services cannot see: move it to /opt."
            )


def check_root(root: Path) -> None:
    """Raises AppError when only root may write there."""
    if root == Path("/") and os.getuid():
        raise AppError("Only root can install or remove units: use sudo, or --root FOLDER to write them elsewhere.")


def remove_units(root: Path, name: str) -> list[Path]:
    """Removes the files that install() wrote for this group."""
    folder = root / UNITS
    found = [folder / f"{name}.target", folder / f"{name}-mps.service"]
    found.append(folder / f"{name}-fusion.service")  # as it was named when a group had one fusion
    found += [folder / f"{stem(service, name)}.service" for service in SERVICES]
    found += sorted((folder / f"{name}.target.wants").glob(f"{name}-*.service"))
    removed = [path for path in found if path.is_symlink() or path.exists()]
    for path in removed:
        path.unlink()
    with contextlib.suppress(OSError):
        (folder / f"{name}.target.wants").rmdir()
    return removed


def _fill(unit: str, values: dict[str, str]) -> str:
    return Template((HERE / f"{unit}.in").read_text()).substitute(values)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
