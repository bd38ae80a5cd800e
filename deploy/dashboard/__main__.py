"""dashboard: pictures of the surfaces rings and what fusion publishes -> browsers.

surfaces rings, part "picture" --> small picture --> joined with its count --> JPEG and boxes, by a WebSocket
"""

import os
import time

from peoplecounter.common.errors import AppError
from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.deploy.dashboard.happenings import Happenings
from peoplecounter.deploy.dashboard.known import Known
from peoplecounter.deploy.dashboard.live import LiveFrames
from peoplecounter.deploy.dashboard.viewer import Viewer
from peoplecounter.deploy.dashboard.web import WebServer
from peoplecounter.deploy.group.client import RunningGroup

NICENESS = 10  # counting comes first
AWAY_S = 0.1  # while nobody looks, messages are read together, this often


def run(rt: Runtime) -> None:
    if rt.settings.dashboard.address is None:
        raise AppError("dashboard.listen is not set: set it to HOST:PORT, e.g. 127.0.0.1:8650.")
    os.nice(NICENESS)
    happenings, live = Happenings(), LiveFrames()
    known = Known(rt.settings, happenings.publish)
    viewer = Viewer(rt, known, live)
    web = rt.closing(WebServer(RunningGroup(rt.settings), known, live, happenings))
    rt.about = web.url
    rt.ready()
    while rt.running:
        if not live.demand:
            time.sleep(AWAY_S)
        rt.tick()
        web.check()
        known.refresh()
        viewer.look()


if __name__ == "__main__":
    serve("dashboard", run)
