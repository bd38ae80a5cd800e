"""More or fewer processes of a running group. Its supervisor starts and ends them: `run`, systemd or compose."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable

from peoplecounter.common.errors import SOFTWARE, Refused
from peoplecounter.common.settings import Workers
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.circus import circus_endpoint
from peoplecounter.deploy.group.client import Group
from peoplecounter.deploy.group.shell import COMMAND_S, call

SETTLED_S = 5.0
COMPOSE = "com.docker.compose"  # what begins the labels of its containers


def scale(group: Group, service: str, number: int) -> str:
    """Makes `number` processes of a service run, and says so when they are ready. Raises Refused if that cannot be."""
    if service not in Workers.model_fields:
        raise Refused(f"{service!r} cannot be scaled: there is {', '.join(Workers.model_fields)}.")
    (limit,) = (rule.le for rule in Workers.model_fields[service].metadata if hasattr(rule, "le"))
    if not 1 <= number <= limit:
        raise Refused(f"{service} {number}: there can be 1 to {limit} processes of it.")
    before = running(group, service)
    ensure(group, service, [str(i) for i in range(number)])
    client.wait_until(
        lambda: ready(group, service) == number and len(running(group, service)) == number,
        client.BACK_S,
        f"There are not {number} processes of {service} after {client.BACK_S:.0f} s: look at their supervisor's log.",
    )
    return f"{service}: {number} ready, there were {len(before)}"


def ready(group: Group, service: str) -> int:
    """How many processes of a service say that they are ready."""
    return sum(row["service"].startswith(service + ".") and row["state"] == "ready" for row in client.table(group))


def running(group: Group, service: str) -> list[str]:
    """Instances of a service that run."""
    named = [(*name.split(".", 1), pid) for name, pid in client.owners(group.run_dir).items()]
    return [instance for of, instance, pid in named if of == service and client.lives(pid)]


def ensure(group: Group, service: str, instances: list[str]) -> None:
    """Has the supervisor run these instances of a service and no others."""
    kind, _, name = check(group).partition(":")
    SUPERVISORS[kind](group, name, service, instances)


def check(group: Group) -> str:
    """The group's supervisor; raises Refused when it has none that could start a process."""
    supervisor = client.supervisor(group)
    if not supervisor:
        raise Refused("This group was started by hand: nobody would start a process.")
    if supervisor.partition(":")[0] not in SUPERVISORS:
        raise Refused(f"{supervisor} starts this group's processes: change what it was given, see deploy/SCALING.md.")
    return supervisor


def _run(group: Group, name: str, service: str, instances: list[str]) -> None:
    """Our own `run`: circus has a private socket. It ends the oldest processes first, so that none may be too many."""
    from circus.client import CircusClient
    from circus.exc import CallError

    client = CircusClient(endpoint=circus_endpoint(group.run_dir), timeout=COMMAND_S)

    def settled() -> bool:
        """False while circus does not know that one has died, or one that found no source has to go."""
        pids = client.send_message("list", name=service)["pids"]
        alive = [pid for pid in pids if client.lives(pid)]
        idle = [pid for pid in alive if pid not in client.owners(group.run_dir).values()]
        surplus = idle[: max(0, len(alive) - len(instances))] if service == "decoder" else []
        for pid in surplus:
            os.kill(pid, signal.SIGTERM)
        return len(alive) == len(pids) and not surplus

    try:
        client.wait_until(settled, SETTLED_S, f"The 'peoplecounter run' of this group does not end a {service}.")
        answer = client.send_message("set", name=service, options={"numprocesses": len(instances)})
    except CallError as error:
        raise Refused(f"The 'peoplecounter run' of this group does not answer: {error}.", SOFTWARE) from None
    finally:
        client.stop()
    if answer.get("status") != "ok":
        raise Refused(f"The 'peoplecounter run' of this group refused: {answer.get('reason')}.", SOFTWARE)


def _systemd(group: Group, name: str, service: str, instances: list[str]) -> None:
    """Template units, kept over a reboot."""
    unit = f"{name}-{service.replace('_', '-')}@"
    for instance in running(group, service):
        if instance not in instances:
            call("systemctl", "disable", "--now", f"{unit}{instance}.service")
    for instance in instances:
        call("systemctl", "enable", "--now", f"{unit}{instance}.service")


def _compose(group: Group, name: str, service: str, instances: list[str]) -> None:
    """The project that the group's processes belong to: its containers share the host's pids with us."""
    argument = f"{service}={len(instances)}"
    if not shutil.which("docker"):
        raise Refused(
            f"compose supervises this group: on its host, docker-compose up -d --no-recreate --scale {argument}"
        )
    pids = {str(pid) for pid in client.owners(group.run_dir).values()}
    wanted = ["project", "project.working_dir", "project.config_files"]
    fields = "\n".join(f'{{{{index .Config.Labels "{COMPOSE}.{label}"}}}}' for label in wanted)
    for container in call("docker", "ps", "-q", "--filter", f"label={COMPOSE}.project").split():
        pid, project, folder, files = call("docker", "inspect", "-f", "{{.State.Pid}}\n" + fields, container).split(
            "\n"
        )[:4]
        if pid in pids:
            arguments = [part for file in files.split(",") for part in ("-f", file)]
            command = [*_compose_command(), "-p", project, "--project-directory", folder, *arguments]
            call(*command, "up", "-d", "--no-recreate", "--no-deps", "--scale", argument, service, cwd=folder)
            return
    raise Refused("No container of docker runs a process of this group.", SOFTWARE)


SUPERVISORS: dict[str, Callable[[Group, str, str, list[str]], None]] = {
    "run": _run,
    "systemd": _systemd,
    "compose": _compose,
}


def _compose_command() -> list[str]:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    return ["docker", "compose"] if plugin else ["docker-compose"]
