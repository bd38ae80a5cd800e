"""How a process shows its supervisor that it makes progress: sd_notify, watchdog and heartbeat file."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

HEARTBEAT_NS = 1_000_000_000


def notify(state: str) -> None:
    """sd_notify: one datagram to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def write_heartbeat(path: Path) -> None:
    """Writes this process' pid anew: the age of the file is the time since the process last made progress."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{os.getpid()}\n")


class Liveness:
    """Feeds systemd's watchdog and the heartbeat file, as often as they need it."""

    def __init__(self, heartbeat: str, now_ns: Callable[[], int]):
        self._heartbeat, self._now_ns = Path(heartbeat) if heartbeat else None, now_ns
        self._watchdog_ns = int(os.environ.get("WATCHDOG_USEC", 0)) * 1000 // 3
        self._watchdog_due_ns = self._heartbeat_due_ns = 0

    def beat(self) -> None:
        """Call this from the loop that makes progress."""
        now_ns = self._now_ns()
        if self._watchdog_ns and now_ns > self._watchdog_due_ns:
            self._watchdog_due_ns = now_ns + self._watchdog_ns
            notify("WATCHDOG=1")
        if self._heartbeat and now_ns >= self._heartbeat_due_ns:
            self._heartbeat_due_ns = now_ns + HEARTBEAT_NS
            write_heartbeat(self._heartbeat)
