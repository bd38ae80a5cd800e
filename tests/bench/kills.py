"""Fusion, the history and its PostgreSQL are killed at random; in the end topic, log and database must agree.

`python -m tests.bench.kills --minutes 10 --out FILE.json`: three squares walk back and forth over a line,
as fast as the machine counts them: 30 crossings in each pass of the clip, so it is known how many there must be.
"""

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from peoplecounter.common import events
from peoplecounter.common.events import Crossing
from peoplecounter.services.history import tables
from tests.support import squares
from tests.support.group import SERVICES, Group
from tests.support.postgres import Postgres
from tests.support.walk import CROSSINGS, LONG, make_three

LINE = {"points": [[0.5, 0.0], [0.5, 1.0]], "inside": [0.9, 0.5]}


class Killed:
    """A group on a looping clip, and what is killed of it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng, self.kills = folder, random.Random(seed), Counter[str]()
        clip, model = make_three(folder)
        self.postgres = Postgres(folder / "postgres")
        source = {"url": str(clip), "loop": True, "lines": {"door": LINE}}
        settings = {"data_dir": str(folder / "data"), "history__database": self.postgres.url, **squares.VIEWS}
        (folder / "run").mkdir(mode=0o700)
        self.group = Group(folder / "run", model, {"cam": source}, **settings)
        self.group.start("history.0", *SERVICES)

    def run(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            time.sleep(self.rng.uniform(0.2, 3.0))
            what = self.rng.choice(("fusion.0", "fusion.0", "history.0", "postgres"))
            self.kills[what] += 1
            if what == "postgres":
                self.postgres.kill()
                time.sleep(self.rng.uniform(0, 1))
                self.postgres.start()
            else:
                self.group.signal(what, signal.SIGKILL)
                self.group.start(what)

    def result(self) -> dict:
        """What each of the three knows, once nothing is counted any more."""
        g = self.group
        g.wait_counts(20)
        g.signal("decoder.cam", signal.SIGTERM)
        g.wait_exit("decoder.cam")
        time.sleep(3)
        log = self.logged()
        until_s = time.monotonic() + 60
        while (stored := self.stored()) != log and time.monotonic() < until_s:
            time.sleep(0.5)
        numbers = [c["number"] for c in g.of("crossings")]
        status = g.of("status")[-1]["lines"]["door"]
        totals = g.totals()
        return {
            "kills": dict(self.kills),
            "frames": totals["frames"],
            "dropped": totals["dropped"],
            "passes": totals["frames"] / LONG,
            "crossings": {
                "of_the_topic": status,
                "of_the_log": dict(Counter(direction for _, direction in log)),
                "of_the_database": dict(Counter(direction for _, direction in stored)),
                "in_whole_passes": totals["frames"] // LONG * CROSSINGS,
            },
            "numbers_without_a_gap": [n for n, _ in log] == list(range(1, len(log) + 1)),
            "database_is_the_log": stored == log,
            "published": len(numbers),
            "published_twice": len(numbers) - len(set(numbers)),
        }

    def logged(self) -> list[tuple[int, str]]:
        folder = self.folder / "data" / events.FOLDER
        records = [r for path in events.files(folder, "cam") for r, _ in events.read(path)]
        return [(r.number, r.direction) for r in records if isinstance(r, Crossing)]

    def stored(self) -> list[tuple[int, str]]:
        c, engine = tables.crossings.c, tables.connect(self.postgres.url)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(select(c.number, c.direction).order_by(c.number))]
        except SQLAlchemyError:
            return []
        finally:
            engine.dispose()

    def close(self) -> None:
        self.group.close()
        self.postgres.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pc-kills-", dir="/dev/shm"))
    folder.chmod(0o755)
    killed = Killed(folder, options.seed)
    try:
        killed.run(60 * options.minutes)
        result = killed.result()
    finally:
        killed.close()
        shutil.rmtree(folder, ignore_errors=True)
    today = datetime.now(UTC).date().isoformat()
    command = f"python -m tests.bench.kills --minutes {options.minutes:g} --seed {options.seed}"
    report = {"date": today, "command": command, **result}
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
