"""Who may see and change what on the dashboard: hosts, origins, tokens, roles. The real server, without a group."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import threading

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.dashboard import tokens, web
from peoplecounter.deploy.dashboard.guard import allowed_hosts, url_of
from peoplecounter.deploy.dashboard.happenings import Happenings
from peoplecounter.deploy.dashboard.known import Known
from peoplecounter.deploy.dashboard.live import CLIENTS_MAX, LiveFrames
from peoplecounter.deploy.dashboard.web import WebServer
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.client import RunningGroup
from tests.support.cli import ROOT, command, peoplecounter
from tests.support.dashboard import Dashboard
from tests.support.rtsp import free_port

LINE = {"points": [[0.5, 0.0], [0.5, 1.0]], "inside": [0.9, 0.5]}


@pytest.fixture
def serve(run_dir):
    """Starts a dashboard with these settings, in this process."""
    servers = []

    def start(**dashboard):
        port = free_port()
        dashboard = {"listen": f"127.0.0.1:{port}", **dashboard}
        settings = Settings(run_dir=run_dir, sources={"cam": {"url": "rtsp://camera/1"}}, dashboard=dashboard)
        group = RunningGroup(settings)
        servers.append(WebServer(group, Known(settings), LiveFrames(), Happenings()))
        return Dashboard(port)

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    return path, tokens.add_user(path, "anna", "edit"), tokens.add_user(path, "wall", "view")


def test_a_foreign_host_or_origin_is_refused_even_on_loopback(serve):
    dashboard = serve()
    own = dashboard.url
    for headers in ({}, {"Origin": own}, {"Host": f"localhost:{dashboard.port}"}, {"Sec_Fetch_Site": "same-origin"}):
        assert dashboard.ask("/api/v1/sources", **headers)[0] == 200, headers
    for headers in (
        {"Host": "evil.example"}, {"Host": f"evil.example:{dashboard.port}"}, {"Host": "127.0.0.1"},
        {"Host": f"127.0.0.1:{dashboard.port}.evil.example"}, {"Host": ""},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://" + dashboard.host},
        {"Origin": f"http://127.0.0.1:{dashboard.port + 1}"}, {"Origin": f"http://localhost:{dashboard.port}"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate"},
    ):  # fmt: skip
        for path, method, body in (("/api/v1/sources", "GET", None), ("/api/v1/sources/cam/lines/a", "PUT", LINE)):
            assert dashboard.ask(path, method, body, **headers)[0] == 403, headers
    assert dashboard.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200  # a link to it
    for origin, allowed in ((own, True), (None, True), ("http://evil.example", False)):
        if allowed:
            with dashboard.live(origin=origin):
                pass
        else:
            with pytest.raises(InvalidStatus) as refused, dashboard.live(origin=origin):
                pass
            assert refused.value.response.status_code == 403
    assert dashboard.json("/api/v1/sources/cam")["lines"] == {}


def test_every_answer_carries_its_policy_and_loads_nothing_from_elsewhere(serve):
    dashboard = serve()
    for path in ("/", "/api/v1/sources", "/nothing", "/static/../web.py"):
        _, headers, content = dashboard.ask(path)
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers
        assert b"uvicorn" not in content
    for path in ("/static/../web.py", "/nothing"):
        assert dashboard.error(path) == (404, "There is nothing at this address.")


def test_sizes_are_bounded(serve):
    dashboard = serve()
    path = "/api/v1/sources/cam/lines/a"
    assert dashboard.ask(path, "PUT", b"x" * 70_000)[0] == 413
    assert dashboard.ask(path, "PUT", None, Transfer_Encoding="chunked")[0] == 413
    many = {**LINE, "points": [[0.001 * i, 0.5] for i in range(65)]}
    assert dashboard.error(path, "PUT", many) == (422, "points has too many values: 64 at most.")
    for body, why in (
        ({}, "points is missing."), ({**LINE, "prot": 1}, "prot is not known here."),
        ({**LINE, "inside": [0.5, 1.5]}, "inside.1 must be at most 1.0."),
        ([], "The request needs a body: a JSON object."),
        ({**LINE, "anchor": "hat"}, "anchor must be 'feet', 'centre' or 'head'."),
        ({**LINE, "inside": [0.5, 0.5]}, "Inside lies on the line: choose a point on the inner side."),
    ):  # fmt: skip
        assert dashboard.error(path, "PUT", body) == (422, why)
    bow_tie = {"points": [[0, 0], [1, 1], [1, 0.1], [0, 1]]}
    status, why = dashboard.error("/api/v1/sources/cam/zones/z", "PUT", bow_tie)
    assert status == 422 and why == "Two sides of the zone cross each other: give its corners in order."
    assert dashboard.error("/api/v1/counts", "POST")[1] == "This address does not take such requests."
    assert dashboard.error("/api/v1/sources/cam/picture?width=100000")[0] == 422
    assert dashboard.error(f"/api/v1/sources/cam/lines/{'a' * 64}", "PUT", LINE)[0] == 422
    for number in range(64):
        dashboard.json(f"/api/v1/sources/cam/lines/line{number}", "PUT", LINE)
    status, why = dashboard.error("/api/v1/sources/cam/lines/more", "PUT", LINE)
    assert status == 422 and "64 lines and zones" in why
    sockets = []
    with pytest.raises(Exception) as refused:
        for _ in range(CLIENTS_MAX + 1):
            sockets.append(dashboard.live())
            sockets[-1].__enter__()
    assert len(sockets) == CLIENTS_MAX + 1 and refused.value.response.status_code == 403
    for one in sockets[:-1]:
        one.__exit__(None, None, None)


def test_tokens_roles_and_sessions(serve, token_file):
    path, edit, view = token_file
    dashboard = serve(token_file=str(path))
    assert dashboard.json("/api/v1/session")["role"] is None and dashboard.ask("/")[0] == 200
    for closed in ("/api/v1/sources", "/api/v1/events", "/api/v1/openapi.json", "/api/v1/sources/cam/picture"):
        assert dashboard.error(closed) == (401, "Log in first.")
    with pytest.raises(InvalidStatus), dashboard.live():
        pass
    assert dashboard.error("/api/v1/login", "POST", {"token": "wrong"}) == (401, "This token is not known.")

    status, headers, content = dashboard.ask("/api/v1/login", "POST", {"token": view})
    assert (status, json.loads(content)) == (200, {"role": "view"})
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    session = cookie.split(";")[0]
    assert view not in cookie and dashboard.json("/api/v1/sources", Cookie=session)
    with dashboard.live(additional_headers={"Cookie": session}):
        pass
    for forbidden, method, body in (
        ("/api/v1/sources/cam/lines/a", "PUT", LINE), ("/api/v1/sources/cam/lines/a", "DELETE", None),
        ("/api/v1/sources/cam/lines/try", "PUT", LINE), ("/api/v1/sources/cam/zones/logout", "DELETE", None),
        ("/api/v1/areas/shop/corrections", "POST", {"people": 1}), ("/api/v1/services/infer_tiles/scale", "POST", {}),
        ("/api/v1/processes/fusion.0/restart", "POST", None),
    ):  # fmt: skip
        assert dashboard.error(forbidden, method, body, Cookie=session)[0] == 403
    assert dashboard.json("/api/v1/sources/cam/try", "POST", {"line": LINE}, Cookie=session)["in"] == 0

    bearer = {"Authorization": f"Bearer {edit}"}
    assert dashboard.json("/api/v1/sources/cam/lines/a", "PUT", LINE, **bearer) == {"change": "added"}
    assert dashboard.json("/api/v1/session", **bearer)["role"] == "edit"
    assert dashboard.json("/api/v1/logout", "POST", Cookie=session) == {}
    assert dashboard.error("/api/v1/sources", Cookie=session)[0] == 401

    looking = dashboard.live(additional_headers={"Authorization": f"Bearer {edit}"})
    lines = path.read_text().splitlines()
    assert edit not in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    with looking as connection:
        path.write_text("\n".join(line for line in lines if not line.startswith("anna")))
        with pytest.raises(ConnectionClosedError, match="Log in first"):
            connection.recv(10)  # who is taken out of the file is out
    assert dashboard.error("/api/v1/sources", **bearer)[0] == 401


def test_wrong_tokens_are_limited(serve, token_file, monkeypatch):
    path, edit, _ = token_file
    dashboard = serve(token_file=str(path))
    for _ in range(tokens.TRIES):
        assert dashboard.error("/api/v1/login", "POST", {"token": "wrong"})[0] == 401
    assert dashboard.error("/api/v1/login", "POST", {"token": edit})[0] == 429
    assert dashboard.error("/api/v1/sources", Authorization="Bearer x")[0] == 429
    monkeypatch.setattr(tokens, "TRY_S", 0.0)
    assert dashboard.json("/api/v1/login", "POST", {"token": edit}) == {"role": "edit"}


def test_tls(serve, token_file, tmp_path):
    path, edit, _ = token_file
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    dashboard = serve(token_file=str(path), tls_certificate=str(certificate), tls_key=str(key))
    context = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", dashboard.port, context=context, timeout=10)
    body = json.dumps({"token": edit})
    connection.request("POST", "/api/v1/login", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200 and "Secure" in answer.headers["set-cookie"]
    with pytest.raises(AppError, match="are not a certificate and its key"):
        serve(token_file=str(path), tls_certificate=str(path), tls_key=str(path))


def test_an_address_in_use_and_a_wrong_token_file_are_told(serve, token_file):
    dashboard = serve()
    with pytest.raises(AppError, match="cannot listen on"):
        serve(listen=dashboard.host)
    path, *_ = token_file
    right = path.read_text()
    for wrong in ("bob admin 00 00", f"bob edit zz {'00' * 32}", "bob edit", f"bob edit {'00' * 16} 0"):
        path.write_text(f"{right}{wrong}\n")
        with pytest.raises(AppError, match="Line 3 of"):
            serve(token_file=str(path))
    path.chmod(0o644)
    with pytest.raises(AppError, match="chmod 600"):
        serve(token_file=str(path))
    with pytest.raises(AppError, match="dashboard token NAME"):
        serve(token_file=str(path) + "x")


def test_connections_that_never_ask_are_closed(serve, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE_S", 0.4)
    dashboard = serve()
    for begin in (b"", b"GET / HT", b"PUT /api/v1/sources/cam/lines/a HTTP/1.1\r\nHost: " + dashboard.host.encode()
                  + b"\r\nContent-Length: 9\r\n\r\n{"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", dashboard.port), timeout=10) as raw:
            raw.sendall(begin)
            assert raw.recv(9) == b""
    with dashboard.live() as connection, pytest.raises(TimeoutError):
        connection.recv(1.5)  # one that looks may be silent


def test_names_by_which_it_may_be_called():
    def dashboard(**given):
        return Settings(sources={}, dashboard={"token_file": "x", **given}).dashboard

    proxied = dashboard(listen="127.0.0.1:8650", hosts=["counter.example.com"], behind_proxy=True)
    assert allowed_hosts(proxied, 8650) >= {"counter.example.com", "127.0.0.1:8650", "localhost:8650"}
    assert url_of(proxied, 8650) == "https://counter.example.com/"
    own = dashboard(listen="192.168.1.5:443", tls_certificate="c", tls_key="k")
    assert (
        allowed_hosts(own, 443) == {"192.168.1.5:443", "192.168.1.5"} and url_of(own, 443) == "https://192.168.1.5:443/"
    )


def test_the_command_makes_tokens(run_dir, tmp_path):
    path = tmp_path / "tokens"
    done = peoplecounter(run_dir, "dashboard", "token", "anna", "--role", "edit", "--file", path)
    token = done.stdout.strip()
    assert done.returncode == 0 and len(token) == 32
    keeper = tokens.Doorkeeper(path)
    assert keeper.user_of(token, "").role == "edit"
    again = peoplecounter(run_dir, "dashboard", "token", "anna", "--file", path).stdout.strip()
    assert again != token and keeper.user_of(token, "") is None and keeper.user_of(again, "").role == "view"
    for arguments in (("an na", "--file", path), ("bob", "--role", "root", "--file", path)):
        wrong = peoplecounter(run_dir, "dashboard", "token", *arguments)
        assert wrong.returncode == 78 and wrong.stderr.startswith("peoplecounter: ")
    none = peoplecounter(run_dir, "dashboard")
    assert none.returncode == 66 and "No group runs" in none.stderr


def test_run_prints_where_its_pages_are(run_dir, clip, model):
    """On a free port, which stays when the process is killed; `peoplecounter dashboard` prints it, too."""
    arguments = ("run", clip, "--model", model, "--loop", "--realtime", "--json")
    argv, environment = command(run_dir, *arguments, PEOPLECOUNTER_DASHBOARD__LISTEN="auto", PEOPLECOUNTER_CORES="1")
    process = subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in process.stderr if line.startswith("pictures on "))
        url = line.split()[-1]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        dashboard = Dashboard(int(url.rstrip("/").rpartition(":")[2]))
        dashboard.wait()
        assert peoplecounter(run_dir, "dashboard").stdout.strip() == url
        os.kill(client.owners(run_dir)["dashboard.0"], signal.SIGKILL)
        dashboard.wait()
        assert peoplecounter(run_dir, "dashboard").stdout.strip() == url
        assert dashboard.json("/api/v1/sources")[0]["name"] == "clip"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
