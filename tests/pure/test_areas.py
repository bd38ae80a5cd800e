"""Areas add up lines; resets, corrections and alerts are recorded and survive a restart."""

import http.server
import json
import socket
import threading
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from peoplecounter.common import counting as c
from peoplecounter.common import settings as s
from peoplecounter.common.errors import AppError
from peoplecounter.common.events import AREAS, LineTotals, read_adjustments
from peoplecounter.services.fusion.alerts import Alert, Alerts, _post
from peoplecounter.services.fusion.areas import Area, latest

BERLIN = ZoneInfo("Europe/Berlin")


class Lines(dict):
    """Totals of lines, as fusion has them."""

    def area(self, folder, *lines, reset=""):
        settings = c.AreaSettings(lines=lines or ("door.a", "back.b"), reset=reset)
        return Area(
            folder / "data", "shop", settings, "Europe/Berlin", lambda line: self.setdefault(line, LineTotals())
        )


@pytest.fixture
def lines():
    return Lines({"door.a": LineTotals(10, 3), "back.b": LineTotals(0, 2)})


def kinds(folder):
    return [(e.kind, e.before, e.after) for e in read_adjustments(folder / "data" / AREAS / "shop.log")]


def test_an_area_begins_empty_and_is_never_clamped(lines, tmp_path):
    area = lines.area(tmp_path)
    assert area.occupancy() == 0
    lines["door.a"].ins += 2
    lines["back.b"].outs += 5
    assert area.occupancy() == -3
    public = area.public(0)
    assert (public["in"], public["out"], public["occupancy"], public["totals"]) == (2, 5, -3, {"in": 12, "out": 10})


def test_a_correction_is_a_recorded_row_and_a_restart_continues(lines, tmp_path):
    area = lines.area(tmp_path)
    lines["door.a"].ins += 4
    number = area.public(0)["number"]
    assert area.correct(7, time.time(), "counted by hand") == (4, 7)
    assert area.public(0)["number"] == number + 1
    lines["door.a"].outs += 1
    again = lines.area(tmp_path)
    assert (again.occupancy(), again.public(0)["corrected"]) == (6, 3)
    assert kinds(tmp_path) == [("begin", 0, 0), ("correct", 4, 7)]


@pytest.mark.parametrize("torn", [b'{"number":2,"kind"', b"\n{", b"x"])
def test_an_entry_behind_a_torn_one_counts(lines, tmp_path, torn):
    area = lines.area(tmp_path)
    with (tmp_path / "data" / AREAS / "shop.log").open("ab") as file:
        file.write(torn)
    area.correct(9, time.time())
    assert lines.area(tmp_path).occupancy() == 9


def test_other_lines_leave_the_occupancy_as_it_was(lines, tmp_path):
    area = lines.area(tmp_path)
    lines["door.a"].ins += 4
    lines["side.c"] = LineTotals(100, 50)
    area = lines.area(tmp_path, "door.a", "side.c")
    assert area.occupancy() == 4
    lines["side.c"].outs += 1
    assert (area.occupancy(), area.public(0)["in"]) == (3, 4)


def test_a_reset_empties_the_area_once_a_day_and_keeps_the_drift(lines, tmp_path, monkeypatch):
    at = datetime(2026, 11, 26, 3, 0, tzinfo=BERLIN).timestamp()
    monkeypatch.setattr(time, "time", lambda: at)
    area = lines.area(tmp_path, reset="04:00")
    lines["door.a"].ins += 2
    assert not area.reset_if_due(at + 3599)
    assert area.reset_if_due(at + 3601) and not area.reset_if_due(at + 3602)
    assert (area.occupancy(), area.drift) == (0, 2)
    again = lines.area(tmp_path, reset="04:00")
    assert not again.reset_if_due(at + 86_400)
    assert again.reset_if_due(at + 3 * 86_400)  # fusion was away at four: later is better than never
    assert kinds(tmp_path) == [("begin", 0, 0), ("reset", 2, 0), ("reset", 0, 0)]


@pytest.mark.parametrize(
    "now, due",
    [
        ("2026-11-26T03:59:59+01:00", "2026-11-25T04:00:00+01:00"),
        ("2026-11-26T04:00:00+01:00", "2026-11-26T04:00:00+01:00"),
        ("2026-03-29T04:00:00+02:00", "2026-03-29T04:00:00+02:00"),  # a day of 23 hours
        ("2026-10-25T03:59:59+01:00", "2026-10-24T04:00:00+02:00"),  # one of 25
        ("2027-01-01T00:30:00+01:00", "2026-12-31T04:00:00+01:00"),
    ],
)
def test_when_it_was_four_last(now, due):
    assert latest("04:00", BERLIN, datetime.fromisoformat(now).timestamp()) == datetime.fromisoformat(due).timestamp()


def changes(settings, values):
    """(second, raised?) of each change; one value a second."""
    alert = Alert(c.AlertSettings(**settings))
    return [(second, alert.raised) for second, value in enumerate(values) if alert.update(value, second)]


@pytest.mark.parametrize(
    "settings, values, expected",
    [
        ({"above": 10}, [10, 11, 11, 10], [(1, True), (3, False)]),
        ({"above": 10, "clear_below": 8}, [11, 10, 8, 7, 10, 11], [(0, True), (3, False), (5, True)]),
        ({"above": 10, "for_s": 2}, [11, 11, 9, 11, 11, 11, 9, 9, 9], [(5, True), (8, False)]),
        ({"below": 2, "clear_above": 3}, [2, 1, 3, 4, 3], [(1, True), (3, False)]),
    ],
)
def test_an_alert_has_hysteresis_and_patience(settings, values, expected):
    assert changes({"area": "shop", **settings}, values) == expected


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"above": 1}, "watches one thing"),
        ({"area": "x", "zone": "a.b", "above": 1}, "watches one thing"),
        ({"area": "x"}, "set above or below"),
        ({"area": "x", "above": 1, "clear_below": 2}, "clear_below"),
        ({"area": "x", "below": 1, "clear_below": 2}, "clear_below"),
    ],
)
def test_an_alert_that_makes_no_sense_is_refused(values, problem):
    with pytest.raises(AppError, match=problem):
        s.section_settings(c.AlertSettings, **values)


def mail_server(server):
    with server.accept()[0] as client:
        client.recv(4096)
        client.sendall(b"220 mail.example\r\n")


def test_a_webhook_that_is_none_does_not_end_the_others():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=mail_server, args=(server,), daemon=True).start()
        assert "220" in _post(f"http://127.0.0.1:{server.getsockname()[1]}/x", {})
    assert _post("http://127.0.0.1:abc/x", {}) and _post("http://127.0.0.1:1/x", {})


def test_an_alert_on_something_that_does_not_exist_says_so_once(run_dir, caplog):
    settings = s.Settings(run_dir=run_dir, alerts={"queue": {"zone": "cam.dsk", "above": 1}})
    alerts = Alerts(settings, lambda kind, name: None)
    assert [alerts.update(now_s) for now_s in (1.0, 2.0)] == [[], []]
    assert [r.message for r in caplog.records] == ["the alert queue watches a line or zone that does not exist"]
    alerts.close()


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes alerts, but not the first time."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append(body)
        self.send_response(503 if len(self.server.got) == 1 else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_gets_each_change_and_is_tried_again(run_dir, monkeypatch):
    monkeypatch.setattr("peoplecounter.services.fusion.alerts.BETWEEN_S", 0.05)
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/full"
    settings = s.Settings(
        run_dir=run_dir, areas={"shop": {"lines": ["door.a"]}},
        alerts={"full": {"area": "shop", "above": 5, "webhook": url}, "rush": {"line": "door.a", "above": 2}},
    )  # fmt: skip
    people = 6
    alerts = Alerts(settings, lambda kind, name: people)
    (change,) = alerts.update(100.0)
    expected = {"alert": "full", "state": "raised", "area": "shop", "value": 6, "number": 1}
    assert change[0] == "full" and {k: v for k, v in change[1].items() if k != "time"} == expected
    assert alerts.update(101.0) == []
    for second in range(3):
        alerts.crossed("door.a", 102 + second)
    assert [name for name, _ in alerts.update(105.0)] == ["rush"]
    raised = alerts.raised(105.0)
    assert raised["full"] == {"area": "shop", "above": 5, "value": 6} and raised.keys() == {"full", "rush"}
    alerts.close()
    again = Alerts(settings, lambda kind, name: people)  # it was told already: only the quiet minute is new
    assert again.raised(106.0).keys() == {"full", "rush"}
    assert [(name, c["state"], c["number"]) for name, c in again.update(200.0)] == [("rush", "cleared", 2)]
    assert again.raised(200.0).keys() == {"full"}
    again.close()
    server.shutdown()
    assert [(body["alert"], body["state"]) for body in server.got] == [("full", "raised")] * 2
