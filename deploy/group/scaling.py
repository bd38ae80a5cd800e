"""Changes the number of processes of a running group; its supervisor (run, systemd, compose) starts and ends them."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.process.gpus import Gpus
from peoplecounter.common.settings import WorkerSettings
from peoplecounter.common.topology import SERVICES
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.circus import circus_endpoint, decoder_count
from peoplecounter.deploy.group.client import RunningGroup
from peoplecounter.deploy.group.shell import COMMAND_S, call

SETTLED_S = 5.0
COMPOSE = "com.docker.compose"  # the prefix of the labels of its containers


def scale(group: RunningGroup, service: str, number: int) -> str:
    """Makes a service run with `number` processes on each GPU; returns a line for the user when they are ready.

    Raises AppError for an unknown service, a number out of bounds, or processes that do not get ready.
    """
    scalable = [row.name for row in SERVICES if row.each == "worker" and not row.fixed]
    if service not in scalable:
        if service in WorkerSettings.model_fields:
            raise AppError(
                f"{service} cannot be scaled while the group runs: set workers.{service}, then start the group again."
            )
        raise AppError(f"{service!r} cannot be scaled: choose {', '.join(scalable)}.")
    (limit,) = (rule.le for rule in WorkerSettings.model_fields[service].metadata if hasattr(rule, "le"))
    if not 1 <= number <= limit:
        raise AppError(f"{service} cannot have {number} processes: choose 1 to {limit}.")
    before, gpus = running(group, service), max(1, len(Gpus(group.run_dir).placement.uuids))
    total = number * gpus  # each GPU has workers of its own
    set_instances(group, service, [str(i) for i in range(total)])
    client.wait_until(
        lambda: ready(group, service) == total and len(running(group, service)) == total,
        client.READY_S,
        f"{service} does not have {total} ready processes after {client.READY_S:.0f} s: see its supervisor's log.",
    )
    return f"{service}: {total} ready, before: {len(before)}" + (f", on {gpus} GPUs" if gpus > 1 else "")


def ready(group: RunningGroup, service: str) -> int:
    """How many processes of a service are ready."""
    rows = client.process_rows(group)
    return sum(row["service"].startswith(service + ".") and row["state"] == "ready" for row in rows)


def running(group: RunningGroup, service: str) -> list[str]:
    """Instances of a service that run."""
    pids = client.owners(group.run_dir)
    instances = {name.split(".", 1)[1]: pid for name, pid in pids.items() if name.split(".", 1)[0] == service}
    return [instance for instance, pid in instances.items() if client.is_running(pid)]


def set_instances(group: RunningGroup, service: str, instances: list[str]) -> None:
    """Makes the supervisor run exactly these instances of a service."""
    kind, _, name = check_supervisor(group).partition(":")
    SUPERVISORS[kind](group, name, service, instances)


def check_supervisor(group: RunningGroup) -> str:
    """The group's supervisor. Raises AppError when there is none that can start a process."""
    supervisor = client.supervisor(group)
    if not supervisor:
        raise AppError("This group was started by hand, without a supervisor: start and stop its processes by hand.")
    if supervisor.partition(":")[0] not in SUPERVISORS:
        raise AppError(f"This group is supervised by {supervisor}: change its manifests, see deploy/SCALING.md.")
    return supervisor


def _run(group: RunningGroup, name: str, service: str, instances: list[str]) -> None:
    """`peoplecounter run`: orders to circus. Idle decoders are ended here: circus would end the oldest ones."""
    from circus.client import CircusClient
    from circus.exc import CallError

    number = len(instances)
    if service == "decoder":
        number = decoder_count(number, len(Gpus(group.run_dir).placement.uuids))
    circus = CircusClient(endpoint=circus_endpoint(group.run_dir), timeout=COMMAND_S)

    def settled() -> bool:
        """False while circus has not noticed that a process died, or a decoder without a source still has to end."""
        pids = circus.send_message("list", name=service)["pids"]
        alive = [pid for pid in pids if client.is_running(pid)]
        idle = [pid for pid in alive if pid not in client.owners(group.run_dir).values()]
        surplus = idle[: max(0, len(alive) - number)] if service == "decoder" else []
        for pid in surplus:
            os.kill(pid, signal.SIGTERM)
        return len(alive) == len(pids) and not surplus

    try:
        client.wait_until(
            settled, SETTLED_S, f"The 'peoplecounter run' of this group has not ended a {service} yet: try again."
        )
        answer = circus.send_message("set", name=service, options={"numprocesses": number})
    except CallError as error:
        raise AppError(f"The 'peoplecounter run' of this group does not answer: {error}.", SOFTWARE) from None
    finally:
        circus.stop()
    if answer.get("status") != "ok":
        raise AppError(f"The 'peoplecounter run' of this group refused: {answer.get('reason')}.", SOFTWARE)


def _systemd(group: RunningGroup, name: str, service: str, instances: list[str]) -> None:
    """Template units, which stay enabled over a reboot."""
    unit = f"{name}-{service.replace('_', '-')}@"
    for instance in running(group, service):
        if instance not in instances:
            call("systemctl", "disable", "--now", f"{unit}{instance}.service")
    for instance in instances:
        call("systemctl", "enable", "--now", f"{unit}{instance}.service")


def _compose(group: RunningGroup, name: str, service: str, instances: list[str]) -> None:
    """The compose project of the group's processes: its containers share the host's PID namespace."""
    argument = f"{service}={len(instances)}"
    if not shutil.which("docker"):
        raise AppError(
            f"compose supervises this group. Run on its host: docker-compose up -d --no-recreate --scale {argument}"
        )
    pids = {str(pid) for pid in client.owners(group.run_dir).values()}
    wanted = ["project", "project.working_dir", "project.config_files"]
    fields = "\n".join(f'{{{{index .Config.Labels "{COMPOSE}.{label}"}}}}' for label in wanted)
    for container in call("docker", "ps", "-q", "--filter", f"label={COMPOSE}.project").split():
        lines = call("docker", "inspect", "-f", "{{.State.Pid}}\n" + fields, container).split("\n")
        pid, project, folder, files = lines[:4]
        if pid in pids:
            arguments = [part for file in files.split(",") for part in ("-f", file)]
            command = [*_compose_command(), "-p", project, "--project-directory", folder, *arguments]
            call(*command, "up", "-d", "--no-recreate", "--no-deps", "--scale", argument, service, cwd=folder)
            return
    raise AppError("No Docker container here runs this group: scale on the host of its containers.", SOFTWARE)


SUPERVISORS: dict[str, Callable[[RunningGroup, str, str, list[str]], None]] = {
    "run": _run,
    "systemd": _systemd,
    "compose": _compose,
}


def _compose_command() -> list[str]:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    return ["docker", "compose"] if plugin else ["docker-compose"]
