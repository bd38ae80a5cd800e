"""The picture in the README: the demo's plaza on the dashboard, in a real browser.

`python -m tests.bench.screenshot deploy/dashboard/screenshot.jpg`, after `make demo` has rendered the clip.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peoplecounter.deploy.demo.run import COUNTED
from tests.support.chromium import Chromium
from tests.support.cli import ROOT, command
from tests.support.dashboard import Dashboard
from tests.support.rtsp import free_port

WIDTH, HEIGHT, QUALITY = 1440, 810, 80
LOOKS_S = 20.0  # so that there are tails and crossings


def main() -> None:
    clip, out = ROOT / ".demo" / "plaza_1080p.mp4", Path(sys.argv[1])
    folder, port = Path(tempfile.mkdtemp(dir="/dev/shm")), free_port()
    source = {"url": str(clip), "realtime": True, "loop": True, "fps": 10, **COUNTED}
    variables = {"SOURCES": json.dumps({"plaza": source}), "DASHBOARD__LISTEN": f"127.0.0.1:{port}"}
    variables |= {"DATA_DIR": str(folder / "data"), "TIMEZONE": "Europe/Berlin"}
    argv, environment = command(folder / "run", "run", **{f"PEOPLECOUNTER_{k}": v for k, v in variables.items()})
    group = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    browser = Chromium()
    try:
        Dashboard(port).wait(60)
        browser.open(f"http://127.0.0.1:{port}/#/camera/plaza", WIDTH, HEIGHT)
        time.sleep(LOOKS_S)
        browser.picture(out, QUALITY)
        assert browser.errors == [], browser.errors
    finally:
        browser.close()
        group.send_signal(signal.SIGINT)
        group.wait(20)


if __name__ == "__main__":
    main()
