"""How a group shares this machine's cores: how many infer processes it starts, and how many threads each has.

Tiles are the bulk of the work, so infer_tiles has a process of one thread for every core: threads of one process wait
for each other in every layer. infer_global infers one image of many, but the only one of a small frame: it has a thread
for every core, up to eight.
"""

import os
from math import ceil
from pathlib import Path

from peoplecounter.common import backend
from peoplecounter.common.process.gpus import Gpus
from peoplecounter.common.settings import Settings
from peoplecounter.common.sources import known_sources
from peoplecounter.common.topology import SERVICES

TILES_MAX = 16  # processes, each with the model's weights in memory; with more cores they get more threads
THREADS_MAX = 8  # of a process; an image gains little from more
CGROUPS = Path("/sys/fs/cgroup")


def count(settings: Settings) -> int:
    """The cores that this group may use: settings.cores, or what the system lets this process use."""
    if settings.cores:
        return settings.cores
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:  # a sandbox may not have it
        groups = ""
    return available(os.sched_getaffinity(0), *quotas(groups))


def available(affinity: set[int], *quotas: float) -> int:
    """Whole cores within an affinity mask and CPU quotas (cores, perhaps a fraction)."""
    return max(1, min([len(affinity), *(ceil(quota) for quota in quotas)]))


def process_count(settings: Settings, service: str) -> int:
    """How many processes of a service with workers a group starts, on each of its GPUs if it uses them."""
    chosen = getattr(settings.workers, service)
    if chosen:
        return chosen
    return min(count(settings), TILES_MAX) if backend.resolve(settings) == "cpu" else 1


def threads(settings: Settings, service: str = "") -> int:
    """How many threads an engine on the CPU has, in a process of this service or in a tool that runs alone."""
    processes = process_count(settings, service) if service == "infer_tiles" else 1
    return settings.engine.threads or min(THREADS_MAX, max(1, round(count(settings) / processes)))


def poll(settings: Settings) -> bool:
    """Whether a process that waits for the GPU, or for the last boxes of a frame, polls: link.poll, or on a GPU where
    every process of the group can have a core of its own."""
    if settings.link.poll != "auto":
        return settings.link.poll == "on"
    if settings.backend == "auto" and backend.is_endpoint(settings.engine.model):
        return False  # there may be no GPU here
    return backend.wants_gpu(settings) and count(settings) >= _processes(settings)


def _processes(settings: Settings) -> int:
    """How many a group has, with the sources that it has now."""
    gpus = max(1, len(Gpus(settings.run_dir).placement.uuids))  # a worker's own settings name one
    number = len(known_sources(settings))
    for row in SERVICES:
        if row.each == "group":
            number += 1
        elif row.each == "worker":
            number += (getattr(settings.workers, row.name) or 1) * (gpus if row.on_gpu else 1)
    return number


def quotas(groups: str, root: Path = CGROUPS) -> list[float]:
    """The CPU quotas, in cores, of a control group (version 2) and of those around it.

    `groups`: what /proc/PID/cgroup says of a process.
    """
    path = next((line[3:] for line in groups.splitlines() if line.startswith("0::/")), None)
    if path is None:
        return []
    group = root / path.lstrip("/")
    return [quota for folder in (group, *group.parents) if folder.is_relative_to(root) for quota in _quota(folder)]


def _quota(group: Path) -> list[float]:
    """The quota of one control group; empty without one."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError):
        return []
