"""The log of events: torn, damaged, full, rotated, bounded, and begun anew."""

import errno
import os
import subprocess
import sys
import time

import pytest

from peoplecounter.common import events
from peoplecounter.common.errors import AppError
from peoplecounter.common.events import Checkpoint, Crossing, EventLog, LineTotals, Minute, MinuteOf, sums_of
from peoplecounter.common.process.journal import Journal
from peoplecounter.services.fusion.ledger import Totals

LIMIT = 64 << 20


def crossing(n, direction="in", line="door", time_s=60.0):
    return Crossing(
        n=n, number=n, line=line, revision=1, direction=direction, track=f"cam/ab/{n}", time_s=time_s, complete=True
    )


def records(data, source="cam"):
    return [r for path in events.files(data / events.FOLDER, source) for r, _ in events.read(path)]


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def opened(data):
    return EventLog(data, "cam", LIMIT)


def test_what_was_appended_is_there_again_with_its_sums(data):
    log = opened(data)
    log.append([crossing(1), crossing(2, "out"), crossing(3, line="back")])
    log.append([crossing(2, "out"), crossing(3, line="back")])  # once more, after a restart
    log.close()
    again = opened(data)
    assert again.sums.lines == {"door": LineTotals(1, 1), "back": LineTotals(1, 0)}
    assert (again.n, again.sums.log, again.sums.minute_s) == (3, log.sums.log, 60)
    assert [r.n for r in records(data)] == [0, 1, 2, 3]
    again.append([Minute(n=4, start_s=60, observed_s=60, complete_s=60, people_mean=1, people_max=2,
                         lines={"door": MinuteOf(1, 1)})])  # fmt: skip
    assert again.sums.minute == {}
    again.close()


@pytest.mark.parametrize("torn", [1, 7, 60])
def test_a_torn_end_is_cut_off_and_written_anew(data, torn):
    log = opened(data)
    log.append([crossing(1), crossing(2)])
    log.close()
    path = data / "events" / "cam.log"
    os.truncate(path, path.stat().st_size - torn)
    again = opened(data)
    assert again.n == 1
    again.append([crossing(2, "out")])
    again.close()
    assert [r.direction for r in records(data)[1:]] == ["in", "out"]


def test_a_damaged_line_is_left_out_and_the_others_count(data):
    log = opened(data)
    log.append([crossing(1), crossing(2), crossing(3)])
    log.close()
    path = data / "events" / "cam.log"
    path.write_bytes(path.read_bytes().replace(b'"number":2', b'"number":9'))
    assert records(data)[2] is None
    again = opened(data)
    assert (again.n, again.sums.lines["door"].ins) == (3, 2)
    again.close()


def test_a_log_whose_begin_is_damaged_is_kept_and_begun_anew(data):
    log = opened(data)
    log.append([crossing(1)])
    log.close()
    path = data / "events" / "cam.log"
    path.write_bytes(path.read_bytes().replace(b"checkpoint", b"chackpoint"))
    for n in (1, 2):
        again = opened(data)
        again.append([crossing(n)])
        assert again.n == n  # it is begun anew once, not at every start
        again.close()
    assert len(list(path.parent.glob("cam.*.damaged"))) == 1


def test_a_full_file_is_rotated_and_the_oldest_are_deleted(data, monkeypatch):
    monkeypatch.setattr(events, "FILE_BYTES", 2000)
    log = EventLog(data, "cam", 6000)
    for n in range(1, 101):
        log.append([crossing(n)])
    log.close()
    paths = events.files(data / events.FOLDER, "cam")
    assert len(paths) == 3
    assert sum(path.stat().st_size for path in paths) < 8000
    kept = records(data)
    assert isinstance(kept[0], Checkpoint) and kept[-1].n == 100
    assert [r.n for r in kept if isinstance(r, Crossing)] == list(range(kept[0].n + 1, 101))
    assert sums_of(data, "cam").lines["door"].ins == 100
    os.truncate(paths[-1], 0)  # killed between the renaming and the checkpoint
    again = EventLog(data, "cam", 6000)
    assert again.n == int(paths[-2].stem.partition(".")[2])
    again.close()


def test_a_full_disk_leaves_whole_records_only(data, monkeypatch):
    log = opened(data)
    log.append([crossing(1)])
    write, left = os.write, [40]

    def full(fd, buffer):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] = 0
        return write(fd, buffer[:40])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError):
        log.append([crossing(2)])
    monkeypatch.undo()
    assert [r.n for r in records(data)] == [0, 1]
    log.append([crossing(2), crossing(3)])
    log.close()
    assert [r.n for r in records(data)] == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_used_is_an_error_with_its_name(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    with pytest.raises(AppError, match=r"data_dir .*/data must be private"):
        opened(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(AppError, match=r"data_dir .*/file cannot be used"):
        opened(tmp_path / "file")


def test_a_journal_that_is_killed_while_it_writes_keeps_the_record_before(tmp_path):
    journal = Journal(tmp_path / "j", Totals)
    for counted in (1, 2, 3):
        journal.write(Totals(counted=counted))
    journal.close()
    with (tmp_path / "j").open("r+b") as file:  # the third record lies in the first slot
        file.seek(20)
        file.write(b"\xff" * 8)
    again = Journal(tmp_path / "j", Totals)
    assert again.read().counted == 2
    again.write(Totals(counted=4))
    assert again.read().counted == 4
    again.close()
    assert (tmp_path / "j").stat().st_blocks * 512 < 100_000  # its slots are mostly holes


KILLED = """
import sys
import time
from pathlib import Path
from peoplecounter.common.process.journal import Journal
from peoplecounter.services.fusion.ledger import Totals
journal = Journal(Path(sys.argv[1]), Totals)
print("go", flush=True)
for n in range(10**9):
    journal.write(Totals(counted=n, dropped={str(i): n for i in range(2000)}))
"""


def test_a_journal_of_many_pages_survives_a_kill_at_any_moment(tmp_path):
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "j"], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            process.stdout.close()
            time.sleep(0.1)
            process.kill()
        journal = Journal(tmp_path / "j", Totals)
        record = journal.read()
        journal.close()
        assert record is None or set(record.dropped.values()) <= {record.counted}
