"""The history: intervals of local time, logs that are read into both kinds of databases, and what is asked of them."""

import json
import shutil
import tempfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update

from peoplecounter.common import events
from peoplecounter.common.counting import HistorySettings, LineSettings
from peoplecounter.common.errors import AppError
from peoplecounter.common.events import AREAS, Adjustment, Crossing, EventLog, Minute, MinuteOf, ShapeChange, ZoneChange
from peoplecounter.common.ipc.messages import FrameHeader
from peoplecounter.deploy.history import formats, query
from peoplecounter.deploy.history.intervals import intervals, local, moment
from peoplecounter.services.fusion.flow import Flow, SeenFrame
from peoplecounter.services.history import follow, tables
from peoplecounter.services.history.follow import LogFollower
from tests.support import postgres

BERLIN, KATHMANDU = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")


def utc(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def spans(begin, end, step, zone):
    begin_s, end_s = (datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() for text in (begin, end))
    return intervals(begin_s, end_s, step, zone)


@pytest.mark.parametrize("day, next_day, hours", [("2026-03-29", "2026-03-30", 23), ("2026-10-25", "2026-10-26", 25)])
def test_a_day_of_23_or_25_hours(day, next_day, hours):
    (one,) = spans(day, next_day, "day", BERLIN)
    assert one.end_s - one.begin_s == 3600 * hours
    each = spans(day, next_day, "hour", BERLIN)
    assert [i.end_s - i.begin_s for i in each] == [3600] * hours
    assert len({local(i.begin_s, BERLIN) for i in each}) == hours  # the repeated hour has another offset
    quarters = spans(day, next_day, "15m", BERLIN)
    assert [i.end_s - i.begin_s for i in quarters] == [900] * 4 * hours


def test_hours_of_a_zone_with_45_minutes_begin_at_its_own_full_hours():
    each = spans("2026-11-26", "2026-11-27", "hour", KATHMANDU)
    assert len(each) == 24
    assert all(local(i.begin_s, KATHMANDU)[14:16] == "00" for i in each)
    assert each[0].begin_s == utc("2026-11-25T18:15")


@pytest.mark.parametrize("step", ["15m", "hour", "day", "week", "month", "year"])
@pytest.mark.parametrize("zone", [BERLIN, KATHMANDU, ZoneInfo("UTC"), ZoneInfo("America/St_Johns")], ids=str)
def test_intervals_are_whole_and_leave_nothing_out(step, zone):
    begin_s, end_s = utc("2026-12-30T13:07"), utc("2027-01-03T01:02")
    each = intervals(begin_s, end_s, step, zone)
    assert each[0].begin_s <= begin_s and each[-1].end_s >= end_s
    assert all(a.end_s == b.begin_s for a, b in pairwise(each))


@pytest.mark.parametrize(
    "text, expected", [("2026-11-26", "2026-11-25T23:00"), ("2026-11-26T08:00", "2026-11-26T07:00"),
                       ("2026-11-26T08:00+00:00", "2026-11-26T08:00"), ("yesterday", "2026-11-24T23:00")],
)  # fmt: skip
def test_moments_are_local(text, expected):
    assert moment(text, BERLIN, utc("2026-11-26T12:00")) == utc(expected)


@pytest.mark.parametrize("text", ["tomorrow?", "26.11.2026", ""])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(AppError, match="is no time"):
        moment(text, BERLIN, 0)


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL for all tests of this file."""
    if what := postgres.missing():
        pytest.skip(f"this machine lacks {what}")
    folder = Path(tempfile.mkdtemp(prefix="pc-pg-", dir="/dev/shm"))
    folder.chmod(0o755)
    one = postgres.Postgres(folder / "server")
    yield one
    one.close()
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    if request.param == "sqlite":
        one = tables.connect(f"sqlite:///{tmp_path}/history.db")
    else:
        one = tables.connect(request.getfixturevalue("server").url)
        tables.metadata.drop_all(one)
    tables.prepare(one)
    yield one
    one.dispose()


START_S = utc("2026-10-24T21:00")  # an hour before a day of 25 hours in Berlin


def write_log(data, hours=30, source="door", away=lambda minute: False):
    """A log of some hours: one goes in every minute, one goes out every second minute."""
    log, n, number = EventLog(data, source, 64 << 20), 0, 0
    log.append([ShapeChange(n=(n := n + 1), name="entrance", revision=1, time_s=START_S, settings={"band": 0.15})])
    for minute in range(60 * hours):
        if away(minute):
            continue
        start_s, records = START_S + 60 * minute, []
        for direction in ("in", "out") if minute % 2 else ("in",):
            records.append(Crossing(
                n=(n := n + 1), number=(number := number + 1), line="entrance", revision=1, direction=direction,
                track=f"door/ab/{number}", time_s=start_s + 30, complete=True,
            ))  # fmt: skip
        records.append(ZoneChange(n=(n := n + 1), number=minute + 1, zone="queue", revision=1, entered=False,
                                  track="door/ab/1", time_s=start_s + 40, dwell_s=float(minute % 5)))  # fmt: skip
        records.append(Minute(
            n=(n := n + 1), start_s=start_s, observed_s=60, complete_s=30, people_mean=minute % 3, people_max=3,
            lines={"entrance": MinuteOf(1, minute % 2, minute + 1, (minute + 1) // 2)},
            zones={"queue": MinuteOf(people_mean=0.5, people_max=1)},
        ))  # fmt: skip
        log.append(records)
    log.close()
    return n


def rows_of(engine, table):
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar()


def follower(data, engine, **settings):
    return LogFollower(data, engine, HistorySettings(**settings))


def question(step="hour", zone=BERLIN, begin_s=START_S, end_s=START_S + 30 * 3600, **names):
    return query.Question(begin_s, end_s, step, zone, **names)


def asked(engine, *arguments, **names):
    return query.rows(engine, question(*arguments, **names))


def test_a_log_is_read_once_whatever_happens_in_between(engine, tmp_path, monkeypatch):
    data = tmp_path / "data"
    n = write_log(data)
    monkeypatch.setattr(follow, "BATCH", 100)
    stores = []
    store = LogFollower._store

    def dies_often(self, source, place, rows):
        stores.append(1)
        if len(stores) % 3 == 0:
            raise KeyboardInterrupt
        store(self, source, place, rows)

    monkeypatch.setattr(LogFollower, "_store", dies_often)
    done, one = 0, follower(data, engine)
    while True:
        try:
            done = one.step()
            break
        except KeyboardInterrupt:
            if len(stores) % 2:
                one = follower(data, engine)  # a new process
    assert done > 0 and len(stores) > n // 100
    assert rows_of(engine, "crossings") == 30 * 90
    assert rows_of(engine, "visits") == 30 * 60
    assert rows_of(engine, "minutes") == 3 * 30 * 60
    assert (rows_of(engine, "shapes"), rows_of(engine, "gaps")) == (1, 0)
    with engine.begin() as connection:  # the position is lost, or a backup was restored
        connection.execute(tables.positions.delete())
    monkeypatch.undo()
    assert follower(data, engine).step() == n
    assert rows_of(engine, "crossings") == 30 * 90


def test_sums_of_intervals_are_the_events(engine, tmp_path):
    """A day of 25 hours, in quarters of an hour, hours and days; and in a zone of +05:45."""
    write_log(tmp_path / "data")
    follower(tmp_path / "data", engine).step()
    for zone in (BERLIN, KATHMANDU):
        for step in ("15m", "hour", "day", "week", "month", "year", "total"):
            each = asked(engine, step, zone, lines=["door.entrance"])
            assert (sum(r["in"] or 0 for r in each), sum(r["out"] or 0 for r in each)) == (1800, 900), step
    first, long_day, _ = asked(engine, "day", lines=["door.entrance"])
    assert (first["in"], long_day["in"], long_day["seconds"]) == (60, 1500, 25 * 3600)
    (source,) = asked(engine, "total", sources=["door"])
    assert (source["people_mean"], source["people_max"], source["in"]) == (1.0, 3, None)
    (zone_row,) = asked(engine, "total", zones=["door.queue"])
    assert (zone_row["visits"], zone_row["dwell_mean_s"], zone_row["people_mean"]) == (1800, 2.0, 0.5)
    assert (zone_row["observed_s"], zone_row["complete_s"]) == (108_000, 54_000)


def test_what_was_not_seen_is_empty_and_an_interval_says_how_much_was(engine, tmp_path):
    """A camera is away for ten minutes, then for an hour."""
    write_log(tmp_path / "data", hours=3, away=lambda minute: 2 <= minute < 12 or 60 <= minute < 120)
    follower(tmp_path / "data", engine).step()
    quarters = asked(engine, "15m", end_s=START_S + 3 * 3600, lines=["door.entrance"])
    assert (quarters[0]["observed_s"], quarters[0]["seconds"], quarters[0]["in"]) == (300, 900, 5)
    hours = asked(engine, "hour", end_s=START_S + 3 * 3600)
    unseen = [row for row in hours if row["start"].startswith("2026-10-25T00:00")]
    assert {row["kind"] for row in unseen} == {"source", "line", "zone"}
    for row in unseen:
        assert row["observed_s"] == 0
        assert {row[name] for name in ("in", "out", "people_mean", "people_max", "visits")} == {None}


def test_an_area_shows_its_occupancy_drift_and_corrections(engine, tmp_path):
    data = tmp_path / "data"
    write_log(data, hours=2)
    (data / AREAS).mkdir(mode=0o700)
    fields = {"reset_s": 0, "lines": ("door.entrance",)}
    entries = [  # after 30 minutes 30 went in and 15 out, after 90 minutes 90 and 45
        Adjustment(number=1, kind="begin", time_s=START_S, before=0, after=0, drift=0, base_ins=0, base_outs=0,
                   corrected=0, **fields),
        Adjustment(number=2, kind="correct", time_s=START_S + 1800, before=15, after=20, drift=0, note="by hand",
                   base_ins=0, base_outs=0, corrected=5, **fields),
        Adjustment(number=3, kind="reset", time_s=START_S + 5400, before=50, after=0, drift=50, base_ins=90,
                   base_outs=45, corrected=0, **fields),
    ]  # fmt: skip
    lines = [events.msgspec.json.encode(entry) for entry in entries]
    (data / AREAS / "shop.log").write_bytes(b"\n".join(lines) + b'\n{"number": 4, "kind"')
    one = follower(data, engine)
    assert one.step() and not one.step()
    first, second = asked(engine, "hour", end_s=START_S + 2 * 3600, areas=["shop"])
    assert (first["in"], first["out"], first["occupancy"], first["corrected"], first["drift"]) == (60, 30, 35, 5, None)
    assert (second["occupancy"], second["corrected"], second["drift"]) == (15, None, 50)
    notes = [row["note"] for row in query.raw(engine, "corrections", question(end_s=START_S + 9999))]
    assert notes == ["", "by hand", ""]


def test_records_that_the_log_has_lost_are_a_gap(engine, tmp_path):
    data = tmp_path / "data"
    write_log(data, hours=1)
    path = data / events.FOLDER / "door.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10] + lines[15:30] + [lines[30].replace(b"in", b"on")] + lines[31:]))
    follower(data, engine).step()
    found = [(row["first"], row["last"]) for row in query.raw(engine, "gaps", question())]
    assert found == [(10, 14), (30, 30)]


def test_a_quiet_line_is_observed_too(engine, tmp_path):
    """One person in an hour: the other intervals are 0, not empty."""
    flow = Flow("door", EventLog(tmp_path / "data", "door", 64 << 20))
    line = LineSettings(points=((0.5, 0.0), (0.5, 1.0)), inside=(0.9, 0.5))
    flow.set_shapes({"entrance": line}, START_S)
    for seq in range(3600):
        x = 1000 * (0.3 + 0.04 * min(max(seq - 180, 0), 10))
        box = np.array([[x - 20, 400, x + 20, 500, 0.9, 1]], np.float32)
        header = FrameHeader(
            source="door", seq=seq, pts_s=float(seq), captured_ns=0, deadline_ns=0, width=1000, height=1000
        )
        one = np.ones(1, bool).tobytes()
        flow.frame(SeenFrame(header, box.tobytes(), one, one, True, 0.0, float(START_S)))
        flow.log()
    flow.end_minute()
    flow.log()
    flow.close()
    follower(tmp_path / "data", engine).step()
    quarters = asked(engine, "15m", end_s=START_S + 3600, lines=["door.entrance"])
    assert [(row["in"], row["out"]) for row in quarters] == [(1, 0), (0, 0), (0, 0), (0, 0)]
    assert [round(row["observed_s"]) for row in quarters] == [900, 900, 900, 899]


def test_other_files_beside_a_log_are_left_alone(engine, tmp_path):
    data = tmp_path / "data"
    write_log(data, hours=1)
    folder = data / events.FOLDER
    shutil.copyfile(folder / "door.log", folder / "door.backup.log")
    assert follower(data, engine).step() > 90
    opened = EventLog(data, "door", 64 << 20)
    assert opened.sums.crossings == 90
    opened.close()


def test_a_log_that_is_begun_anew_is_not_taken_for_the_old_one(engine, tmp_path):
    data = tmp_path / "data"
    write_log(data, hours=1)
    one = follower(data, engine)
    one.step()
    shutil.rmtree(data)
    write_log(data, hours=1)
    one.step()
    assert rows_of(engine, "crossings") == 2 * 90


def test_full_files_are_followed_too(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "FILE_BYTES", 8_000)
    data = tmp_path / "data"
    one = follower(data, engine)
    write_log(data, hours=1)
    one.step()
    before = rows_of(engine, "crossings")
    assert before == 90 and len(events.files(data / events.FOLDER, "door")) > 2
    assert one.step() == 0


def test_occupancy_does_not_depend_on_crossings_that_were_deleted(engine, tmp_path):
    data = tmp_path / "data"
    write_log(data, hours=30)
    (data / AREAS).mkdir(mode=0o700)
    begin = Adjustment(
        number=1, kind="begin", time_s=START_S, before=0, after=0, drift=0, base_ins=0, base_outs=0, corrected=0,
        reset_s=START_S, lines=("door.entrance",),
    )  # fmt: skip
    (data / AREAS / "shop.log").write_bytes(events.msgspec.json.encode(begin) + b"\n")
    one = follower(data, engine, crossings_days=1)
    one.step()
    before = asked(engine, areas=["shop"])
    one.forget(START_S + 30 * 3600)
    assert asked(engine, areas=["shop"]) == before
    assert [row["occupancy"] for row in before] == [30 * hour for hour in range(1, 31)]
    (later,) = asked(engine, begin_s=START_S + 29 * 3600, areas=["shop"])
    assert later["occupancy"] == 900


def test_rows_are_chosen_by_name_too(engine, tmp_path):
    for source in ("door", "back"):
        write_log(tmp_path / "data", hours=1, source=source)
    follower(tmp_path / "data", engine).step()
    for names, count in (
        ({}, 180),
        ({"sources": ["door"]}, 90),
        ({"lines": ["back.entrance"]}, 90),
        ({"areas": ["x"]}, 0),
    ):
        assert len(query.raw(engine, "crossings", question(**names))) == count


def test_too_many_intervals_are_refused_before_they_are_made():
    with pytest.raises(AppError, match="too many intervals of 1m"):
        intervals(0, 2e9, "1m", BERLIN)
    for text in ("0001-01-01", "9999-12-31"):
        with pytest.raises(AppError, match="lies outside"):
            moment(text, BERLIN, 0)


def test_a_database_that_is_not_ours_is_only_looked_at(tmp_path):
    url = f"sqlite:///{tmp_path}/other.db"
    other = tables.connect(url)
    with other.begin() as connection:
        connection.exec_driver_sql("create table mine (x integer)")
    with pytest.raises(AppError, match="There is no history"):
        tables.open_existing(url)
    with other.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from sqlite_master").scalar() == 1


def test_old_rows_are_deleted_by_table(engine, tmp_path):
    write_log(tmp_path / "data", hours=30)
    one = follower(tmp_path / "data", engine, crossings_days=1, visits_days=0, minutes_days=2)
    one.step()
    one.forget(START_S + 30 * 3600)
    assert rows_of(engine, "crossings") == 24 * 90
    assert (rows_of(engine, "visits"), rows_of(engine, "minutes")) == (1800, 5400)


def test_a_database_of_another_version_is_refused(engine):
    with engine.begin() as connection:
        connection.execute(update(tables.version).values(number=99))
    with pytest.raises(AppError, match="has tables of version 99, not 1"):
        tables.prepare(engine)


@pytest.mark.parametrize(
    "url, problem",
    [("sqlite:////nowhere/history.db", "There is no history in /nowhere/history.db"),
     ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "cannot be read: connection failed")],
)  # fmt: skip
def test_a_history_that_cannot_be_read_is_one_error_without_a_password(url, problem):
    with pytest.raises(AppError, match=problem) as error:
        tables.open_existing(url)
    assert "secret" not in str(error.value)


def test_formats(engine, tmp_path, capsys):
    with engine.begin() as connection:
        row = {"source": "door", "log": "ab", "n": 1, "kind": "line", "name": "entrance", "start_s": START_S,
               "observed_s": 60, "complete_s": 60, "ins": 2, "outs": 1}  # fmt: skip
        connection.execute(insert(tables.minutes).values(row))
    found = asked(engine, "hour", end_s=START_S + 7200)
    formats.write(found, "table", None)
    assert capsys.readouterr().out.splitlines() == [
        "start                   line           in  out  observed",
        "2026-10-24T23:00+02:00  door.entrance  2   1    1.7%",
        "2026-10-25T00:00+02:00  door.entrance           0.0%",
    ]
    formats.write(found, "csv", tmp_path / "h.csv")
    assert (
        (tmp_path / "h.csv")
        .read_text()
        .splitlines()[1]
        .startswith("2026-10-24T23:00+02:00,2026-10-25T00:00+02:00,line")
    )
    formats.write(found, "json", tmp_path / "h.json")
    assert json.loads((tmp_path / "h.json").read_text().splitlines()[1])["in"] is None
    if not formats.importlib.util.find_spec("pyarrow"):
        with pytest.raises(AppError, match="pyarrow is not installed"):
            formats.write(found, "parquet", tmp_path / "h.parquet")
    else:
        import pyarrow.parquet

        formats.write(found, "parquet", tmp_path / "h.parquet")
        assert pyarrow.parquet.read_table(tmp_path / "h.parquet").column("in").to_pylist() == [2, None]
    for form, out, problem in (
        ("parquet", None, "use --out"),
        ("xml", None, "Unknown format"),
        ("csv", Path("/nowhere/x"), "cannot be written"),
    ):
        with pytest.raises(AppError, match=problem):
            formats.write(found, form, out)
