"""`eval --crossings`, `eval --tracks` and `validate`: one who walks across a line and back, and a whole group."""

import http.client
import json
import signal
import socket
import subprocess
import threading
from urllib.parse import urlsplit

import av
import pytest

from peoplecounter.common.counting import LineSettings
from peoplecounter.deploy.report.crossings import compare_crossings, read_crossings, true_crossings
from peoplecounter.deploy.report.track_scores import read_true_tracks
from tests.support import walk
from tests.support.cli import ROOT, command, peoplecounter

MARKS = [
    {"line": "entrance", "direction": "in", "at_s": walk.IN_S},
    {"line": "entrance", "direction": "out", "at_s": walk.OUT_S},
    {"line": "entrance", "direction": "out", "at_s": 0.1},
]
REPORT = [
    "crossings: 2 found, 3 true, 2 match within 1 s",
    "entrance in: 1 found, 1 true, 1 match",
    "entrance out: 1 found, 2 true, 1 match",
    "precision (found ones are true): 100 % of 2: between 34 % and 100 %, with 95 % confidence",
    "recall (true ones are found): 67 % of 3: between 21 % and 94 %, with 95 % confidence",
    "To claim 95 % you need 73 crossings without an error.",
    "     0.10 s  entrance out  marked, not counted",
]


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """A folder with the clip, its model and the settings of a group that does more than count this clip."""
    folder = tmp_path_factory.mktemp("door")
    walk.make_walk(folder / "walk.mp4")
    walk.walking_model(folder / "walk.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a group that runs publishes there
        port = taken.getsockname()[1]
        (folder / "group.toml").write_text(f"""
[sources.door]
url = "rtsp://127.0.0.1:9/door"
[sources.door.lines.entrance]
points = {walk.LINE["points"]}
inside = {walk.LINE["inside"]}
[sources.yard]
url = "rtsp://127.0.0.1:9/yard"
[fusion]
publish = "tcp://127.0.0.1:{port}"
""")
        yield folder


def validate(door, *more):
    return (
        "validate", f"door={door / 'walk.mp4'}", "--config", door / "group.toml", "--model", door / "walk.onnx", *more
    )  # fmt: skip


class Running:
    """`validate` with its page open: what a browser would ask for."""

    def __init__(self, run_dir, door, marks):
        argv, environment = command(run_dir, *validate(door, "--marks", marks), XDG_RUNTIME_DIR=str(run_dir))
        self.process = subprocess.Popen(
            argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._limit = threading.Timer(60, self.process.kill)
        self._limit.start()
        self.said = []
        while not self.said or "http://" not in self.said[-1]:
            self.said.append(self.process.stdout.readline())
            assert self.said[-1], self.process.communicate()
        url = urlsplit(self.said[-1].strip())
        self.host, self.path = url.netloc, url.path

    def ask(self, path, method="GET", body=None, host=""):
        """(status, body) of a request."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        connection.request(method, path, body, {"Host": host or self.host})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def end(self):
        """(exit code, the rest of what it printed, errors)"""
        out, errors = self.process.communicate(timeout=20)
        self._limit.cancel()
        return self.process.returncode, out, errors

    def close(self):
        self.process.kill()
        self.end()


@pytest.fixture
def page(run_dir, door, tmp_path):
    running = Running(run_dir, door, tmp_path / "marks.csv")
    yield running
    running.close()


def test_eval_compares_crossings_and_tracks(run_dir, door, tmp_path):
    out, events, marks, truth = (tmp_path / name for name in ("out.jsonl", "events.jsonl", "marks.csv", "truth.csv"))
    (tmp_path / "lines.toml").write_text((door / "group.toml").read_text().split("[sources.yard]")[0])
    done = peoplecounter(
        run_dir, "run", f"door={door / 'walk.mp4'}", "--config", tmp_path / "lines.toml", "--model",
        door / "walk.onnx", "--out", out, "--boxes", "--events", events,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(len(json.loads(line)["ids"]) == 1 for line in out.read_text().splitlines())
    marks.write_text("line,direction,at_s\n" + "".join(f"{m['line']},{m['direction']},{m['at_s']}\n" for m in MARKS))
    told = peoplecounter(run_dir, "eval", events, marks, "--crossings")
    assert told.stdout.splitlines() == REPORT[:6], told.stderr
    result = json.loads(peoplecounter(run_dir, "eval", events, marks, "--crossings", "--json").stdout)
    assert (result["precision"], result["matched"], result["lines"]["entrance"]["out"]["true"]) == (1.0, 2, 2)
    strict = json.loads(peoplecounter(run_dir, "eval", events, marks, "--crossings", "--json", "--tolerance", 0).stdout)
    assert (strict["tolerance_s"], strict["matched"]) == (0, 0)

    truth.write_text("frame,person,bodyL,bodyT,bodyR,bodyB\n" + "\n".join(walk.true_rows()))
    told = peoplecounter(run_dir, "eval", out, truth, "--tracks")
    assert told.stdout == f"{walk.FRAMES} frames: IDF1 1.000, HOTA 1.000, 0 identity switches\n", told.stderr
    assert json.loads(peoplecounter(run_dir, "eval", out, truth, "--tracks", "--json").stdout)["found_tracks"] == 1

    lines = {"entrance": LineSettings(**walk.LINE)}
    true = true_crossings(read_true_tracks(truth), lines, (walk.SIDE, walk.SIDE), lambda frame: frame / walk.FPS)
    assert [c.direction for c in true] == ["in", "out"]
    assert [c.at_s for c in true] == pytest.approx([walk.IN_S + 0.1, walk.OUT_S + 0.1])
    assert compare_crossings(read_crossings(events), true, tolerance_s=0.1)["matched"] == 2

    wrong = peoplecounter(run_dir, "eval", out, marks, "--crossings")
    assert wrong.returncode == 65 and f"Line 1 of {out} is not a crossing" in wrong.stderr
    both = peoplecounter(run_dir, "eval", out, marks, "--crossings", "--tracks")
    assert both.returncode == 78 and "use one of them" in both.stderr


def test_a_clip_is_counted_marked_and_compared(page, run_dir, door, tmp_path):
    said = "".join(page.said)
    assert not {word for word in ("yard", "tcp://", "entrance") if word in said}  # nothing else runs, nothing is told
    status, html = page.ask(page.path)
    assert status == 200 and b"<kbd>" in html and b"http://www.w3.org" in html
    assert html.count(b"://") == 1  # that namespace is no request: nothing comes from the network
    clip = json.loads(page.ask(page.path + "clip")[1])
    assert (len(clip["times_s"]), clip["size"], clip["speed"]) == (walk.FRAMES, [walk.SIDE, walk.SIDE], 0.5)
    assert clip["lines"] == [{"name": "entrance", "points": walk.LINE["points"], "side": -1, "anchor": "feet"}]
    for number in (0, 20, 3):
        status, jpeg = page.ask(f"{page.path}frame/{number}")
        assert status == 200 and brightest_column(jpeg, tmp_path) == walk.column(number, walk.CELLS)
    assert page.ask(f"{page.path}frame/{walk.FRAMES}")[0] == 404

    refused = [
        page.ask("/"), page.ask("/x/"), page.ask(page.path.rstrip("/")), page.ask("/x/marks", "POST", "[]"),
        page.ask(page.path, host="example.org"), page.ask(page.path, host="example.org:" + page.host.split(":")[1]),
        page.ask(page.path + "marks", "POST", "[]", host="example.org"), page.ask(page.path + "clip", "POST", "[]"),
    ]  # fmt: skip
    assert refused == [(403, b"forbidden")] * len(refused)
    for damaged in ("", "{}x", "[1]", '[{"line":"other","direction":"in","at_s":1}]', json.dumps(MARKS)[:-1]):
        assert page.ask(page.path + "marks", "POST", damaged)[0] == 400
    assert page.process.poll() is None

    marks = tmp_path / "marks.csv"
    status, shown = page.ask(page.path + "marks", "POST", json.dumps(MARKS))
    shown = json.loads(shown)
    assert status == 200 and shown == [*REPORT, f"The marks are in {marks}."]
    code, out, errors = page.end()
    assert (code, out.strip().splitlines(), errors) == (0, shown, "")
    assert marks.read_text().splitlines() == [
        "line,direction,at_s", f"entrance,in,{walk.IN_S}", f"entrance,out,{walk.OUT_S}", "entrance,out,0.1"
    ]  # fmt: skip
    assert not list(run_dir.iterdir())

    again = peoplecounter(run_dir, *validate(door, "--marks", marks, "--no-page"), XDG_RUNTIME_DIR=str(run_dir))
    assert again.returncode == 0 and again.stdout.splitlines()[-len(shown) :] == shown, again.stderr
    kept = peoplecounter(run_dir, *validate(door, "--marks", marks))
    assert kept.returncode == 78 and f"{marks} exists" in kept.stderr


def test_ctrl_c_ends_the_page(page, run_dir, tmp_path):
    page.process.send_signal(signal.SIGINT)
    code, _, errors = page.end()
    assert code == 130 and errors == "peoplecounter: Stopped before the marks were complete: nothing is saved.\n"
    assert not list(run_dir.iterdir()) and not list(tmp_path.iterdir())


def test_what_cannot_be_validated_is_said_before_it_is_counted(run_dir, door, tmp_path):
    clip, config, model = door / "walk.mp4", door / "group.toml", door / "walk.onnx"

    def problem(clip, *more):
        done = peoplecounter(run_dir, "validate", clip, "--config", config, "--model", model, *more)
        return done.returncode, done.stderr

    code, errors = problem(clip)
    assert code == 78 and "has no line: add a [sources.walk.lines.LINE] table" in errors and f"door={clip}" in errors
    code, errors = problem("door=rtsp://127.0.0.1:9/door")
    assert code == 66 and "record a clip" in errors
    code, errors = problem(f"door={clip}", "--marks", "/nowhere/marks.csv")
    assert code == 66 and "/nowhere/marks.csv cannot be written" in errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = problem(f"door={clip}", "--marks", tmp_path / "new.csv", "--port", taken.getsockname()[1])
    assert code == 78 and "cannot be used: Address already in use" in errors
    marks = tmp_path / "marks.csv"
    marks.write_text("line,direction,at_s\nexit,in,1\n")
    code, errors = problem(f"door={clip}", "--marks", marks, "--no-page")
    assert code == 78 and "has marks at 'exit', which is not a line here: entrance" in errors


def brightest_column(jpeg, folder):
    """In which column of cells a picture shows the square."""
    path = folder / "frame.jpg"
    path.write_bytes(jpeg)
    with av.open(str(path)) as container:
        grey = next(container.decode(video=0)).to_ndarray(format="gray")
    path.unlink()
    assert grey.shape == (walk.SIDE, walk.SIDE)
    return int(grey.sum(axis=0).reshape(-1, walk.CELL).sum(axis=1).argmax())
