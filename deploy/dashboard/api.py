"""The API: what is known, pictures, history, and changes. Every error is {"error": "a sentence"}."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, StreamingResponse

from peoplecounter.common import __version__
from peoplecounter.common.counting import NAME, LineSettings, ZoneSettings
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.ipc.messages import Restart
from peoplecounter.common.settings import WorkerSettings
from peoplecounter.common.sources import known_sources
from peoplecounter.deploy.dashboard.answers import ERRORS, answer_errors
from peoplecounter.deploy.dashboard.bodies import (
    Correction,
    Draft,
    Format,
    HistoryIntervals,
    HistoryRows,
    Login,
    Number,
)
from peoplecounter.deploy.dashboard.guard import address_of, cookie_of, name_of_cookie
from peoplecounter.deploy.dashboard.happenings import Happenings
from peoplecounter.deploy.dashboard.known import Known
from peoplecounter.deploy.dashboard.live import (
    FPS_MAX,
    WIDTH_MAX,
    WIDTH_MIN,
    Client,
    LiveFrames,
    ShownFrame,
    Wish,
)
from peoplecounter.deploy.dashboard.outlines import ViewOutlines
from peoplecounter.deploy.dashboard.past import Past
from peoplecounter.deploy.dashboard.tokens import SESSION_S, Doorkeeper, TooManyTries
from peoplecounter.deploy.dashboard.trail import COLUMNS, ROWS, Trail
from peoplecounter.deploy.dashboard.watching import serve_watcher
from peoplecounter.deploy.group import client as group_client
from peoplecounter.deploy.group import counting_changes, scaling
from peoplecounter.deploy.group.client import RunningGroup
from peoplecounter.deploy.history.formats import csv_text

OWN_NAME = "dashboard.0"
PAGES = Path(__file__).with_name("pages")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PICTURE_S = 5.0  # until a picture must have come
PROCESSES_S = 1.0  # the processes are asked at most this often
METRICS_S = 5.0
TRY_S = 4.0  # a draft waits so long for another one
AS_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}, "application/json": {}}}}

NameInPath = Annotated[str, InPath(pattern=NAME)]


def make_api(
    group: RunningGroup,
    known: Known,
    live: LiveFrames,
    happenings: Happenings,
    past: Past,
    doorkeeper: Doorkeeper,
    port: int,
) -> FastAPI:
    """The application behind the guard."""
    settings = group.settings
    app = FastAPI(
        title="peoplecounter", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
        description="Counts, pictures, lines and history of one group. Every error is an object with `error`.",
        responses={status: {"description": "An error in words"} for status in ERRORS},
    )  # fmt: skip
    answer_errors(app)
    _serve_pages(app)
    secure, cookie_name = settings.dashboard.speaks_tls, name_of_cookie(settings.dashboard, port)
    processes, outlines, trying = _Processes(group), ViewOutlines(settings), threading.Lock()

    def source_of(name: str) -> dict:
        found = known.public(name)
        if found is None:
            raise AppError(f"There is no source {name!r}.", NO_INPUT)
        return found

    def without_addresses(row: dict, request: Request) -> dict:
        """Where cameras and databases are is for those who may edit."""
        return row if request.state.role == "edit" else {**row, **{key: "" for key in ("url", "about") if key in row}}

    def trail_of(name: str) -> Trail:
        with known.lock:
            if name in known.sources:
                return known.sources[name].trail.copy()
        raise AppError(f"There is no source {name!r}.", NO_INPUT)

    @app.get("/healthz", summary="Whether the dashboard works", response_model=None)
    def healthz() -> dict:
        return {"status": "ok"}

    @app.get("/api/v1/session", summary="What the caller may do, and what is shown")
    def session(request: Request) -> dict:
        return {
            "role": request.state.role,
            "login": not doorkeeper.open,
            "version": __version__,
            "timezone": settings.timezone,
            "video": settings.dashboard.pictures,
            "history": past.is_kept,
            "now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    @app.post("/api/v1/login", summary="Begin a session with a token")
    def log_in(body: Login, request: Request, response: Response) -> dict:
        if doorkeeper.open:
            return {"role": "edit"}
        try:
            found = doorkeeper.log_in(body.token, address_of(request.scope, settings.dashboard))
        except TooManyTries:
            raise HTTPException(429, "Too many wrong tokens: wait a minute.") from None
        if found is None:
            raise HTTPException(401, "This token is not known.")
        response.set_cookie(
            cookie_name, found[0], int(SESSION_S), path="/", secure=secure, httponly=True, samesite="strict"
        )
        return {"role": found[1]}

    @app.post("/api/v1/logout", summary="End the session")
    def log_out(request: Request, response: Response) -> dict:
        doorkeeper.log_out(cookie_of(request.headers.get("cookie", ""), cookie_name))
        response.delete_cookie(cookie_name, path="/", secure=secure, httponly=True, samesite="strict")
        return {}

    @app.get("/api/v1/sources", summary="All sources: state, count, lines, zones")
    def sources(request: Request) -> list[dict]:
        with known.lock:
            return [without_addresses(source_of(name), request) for name in sorted(known.sources)]

    @app.get("/api/v1/sources/{source}", summary="One source")
    def source(source: NameInPath, request: Request) -> dict:
        return without_addresses(source_of(source), request)

    @app.get(
        "/api/v1/sources/{source}/picture",
        summary="The picture of the next counted frame, as JPEG",
        responses={200: {"content": {"image/jpeg": {}}}},
        response_class=Response,
    )
    async def picture(source: NameInPath, width: Annotated[int, Query(ge=WIDTH_MIN, le=WIDTH_MAX)] = 960) -> Response:
        found = source_of(source)
        if settings.dashboard.pictures == "off":
            raise HTTPException(403, "Pictures are off: dashboard.video in the settings.")
        client = Client()
        if not live.enter(client):
            raise HTTPException(503, "Too many are looking: try again later.")
        try:
            live.only_newer(client, source)
            live.watch(client, [Wish(source, width, FPS_MAX)])
            async with asyncio.timeout(PICTURE_S):
                least = min(width, found["width"] or width) if settings.dashboard.pictures == "on" else 0
                shown = await _wide_enough(live, client, source, least)
                jpeg = await live.jpeg(source, shown, width)
        except TimeoutError:
            raise HTTPException(503, f"{source} has shown no picture for {PICTURE_S:.0f} s.") from None
        finally:
            live.leave(client)
        if not jpeg:
            raise HTTPException(503, "The background is not known yet: that takes about two minutes of live view.")
        return Response(jpeg, media_type="image/jpeg", headers={"X-Seq": str(shown.seq)})

    @app.get("/api/v1/sources/{source}/heat", summary="Where people stood in the last hour, as seconds in each cell")
    def heat(source: NameInPath) -> dict:
        cells, since_s = trail_of(source).heat()
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since_s))
        return {"columns": COLUMNS, "rows": ROWS, "cells": cells.round(1).ravel().tolist(), "since": since}

    @app.get("/api/v1/sources/{source}/views", summary="The views that its frames are cut into")
    def views(source: NameInPath) -> dict:
        found, size, change = source_of(source), trail_of(source).size, known_sources(settings).get(source)
        if found["width"] is None or not size[0] or change is None or change.source is None:
            raise AppError(f"{source} has shown no frame yet.", SOFTWARE)
        return {"views": outlines.of(change.source.views, size, (found["width"], found["height"]))}

    @app.post("/api/v1/sources/{source}/try", summary="What a line or zone would have counted in the last minutes")
    def try_draft(source: NameInPath, body: Draft) -> dict:
        trail = trail_of(source)
        if (body.line is None) == (body.zone is None):
            raise AppError("Try one thing: give a line or a zone.")
        if not trying.acquire(timeout=TRY_S):
            raise HTTPException(429, "Other drafts are being tried: try again in a moment.")
        try:
            if body.line is not None:
                return trail.try_line(body.line)
            assert body.zone is not None
            return trail.try_zone(body.zone)
        finally:
            trying.release()

    def change(source: str, name: str, shape: LineSettings | ZoneSettings | None, kind: str) -> dict:
        own = settings.sources.get(source)
        if own and name in {**own.lines, **own.zones}:
            raise HTTPException(409, f"{source}.{name} is in the settings file: change it there.")
        before = counting_changes.shapes_of(group, source).get(name)
        if shape is None and before is not None and counting_changes.kind_of(before) != kind:
            raise AppError(f"{source} has no {kind} {name!r}.", NO_INPUT)
        if shape is not None and shape == before:
            return {"change": "none"}
        what = counting_changes.change_shape(group, source, name, shape)
        known.refresh_now()
        return {"change": what}

    @app.put("/api/v1/sources/{source}/lines/{name}", summary="Add a line, or change one: that is a new revision")
    def put_line(source: NameInPath, name: NameInPath, body: LineSettings) -> dict:
        return change(source, name, body, "line")

    @app.delete("/api/v1/sources/{source}/lines/{name}", summary="Remove a line; what it counted stays in the history")
    def delete_line(source: NameInPath, name: NameInPath) -> dict:
        return change(source, name, None, "line")

    @app.put("/api/v1/sources/{source}/zones/{name}", summary="Add a zone, or change one: that is a new revision")
    def put_zone(source: NameInPath, name: NameInPath, body: ZoneSettings) -> dict:
        return change(source, name, body, "zone")

    @app.delete("/api/v1/sources/{source}/zones/{name}", summary="Remove a zone")
    def delete_zone(source: NameInPath, name: NameInPath) -> dict:
        return change(source, name, None, "zone")

    @app.get("/api/v1/counts", summary="The last count of each source")
    def counts() -> list[dict]:
        keys = {"name": "source", "seq": "seq", "time": "time", "count": "count", "complete": "complete"}
        with known.lock:
            found = [source_of(name) for name in sorted(known.sources)]
        return [{new: one[old] for old, new in keys.items()} for one in found if one["count"] is not None]

    @app.get("/api/v1/areas", summary="People in each area")
    def areas() -> list[dict]:
        with known.lock:
            found = dict(known.areas)
        return [
            {"name": name, "lines": area.lines, **found.get(name, {})} for name, area in sorted(settings.areas.items())
        ]

    @app.get("/api/v1/alerts", summary="Alerts that are raised now")
    def alerts() -> list[dict]:
        return [{"alert": name, **content} for name, content in sorted(known.raised.items())]

    @app.post("/api/v1/areas/{area}/corrections", summary="Say how many people are in an area; that is recorded")
    def correct(area: NameInPath, body: Correction) -> dict:
        if area not in settings.areas:
            raise AppError(f"There is no area {area!r}.", NO_INPUT)
        before, after = counting_changes.correct(group, area, body.people, body.note)
        return {"before": before, "after": after}

    def rows_as(rows: list[dict], form: Format) -> Response:
        if form == "csv":
            return Response(csv_text(rows), media_type="text/csv; charset=utf-8")
        return JSONResponse({"rows": rows})

    @app.get(
        "/api/v1/intervals",
        summary="Sums by interval of local time, and how much of each was observed",
        responses=AS_CSV,
        response_class=Response,
    )
    def intervals(asked: Annotated[HistoryIntervals, Query()]) -> Response:
        return rows_as(past.intervals(asked.by, asked.begin, asked.end, asked.tz, asked.names()), asked.form)

    def rows_of(table: str) -> Callable[..., Response]:
        def rows(asked: Annotated[HistoryRows, Query()]) -> Response:
            return rows_as(past.raw(table, asked.begin, asked.end, asked.tz, asked.names(), asked.limit), asked.form)

        return rows

    for table in ("crossings", "visits", "corrections"):
        about = f"The {table} of a time, the newest of them"
        app.get(f"/api/v1/{table}", summary=about, name=table, responses=AS_CSV, response_class=Response)(
            rows_of(table)
        )

    @app.get(
        "/api/v1/events",
        summary="Crossings, visits, areas and alerts as they happen",
        responses={200: {"content": {"text/event-stream": {}}}},
        response_class=StreamingResponse,
    )
    async def events(request: Request) -> StreamingResponse:
        if happenings.full():
            raise HTTPException(503, "Too many are listening: try again later.")
        return StreamingResponse(happenings.listen(request.state.is_allowed), media_type="text/event-stream")

    @app.get("/api/v1/health", summary="Processes and budgets")
    def health(request: Request) -> dict:
        with known.lock:
            budgets = dict(known.budgets)
        rows = processes.rows()
        names = [row["service"].partition(".")[0] for row in rows if row["state"] in ("ready", "starting")]
        return {
            "processes": [
                without_addresses({key: value for key, value in row.items() if key != "counters"}, request)
                for row in rows
            ],
            "budgets": budgets,
            "scalable": {service: names.count(service) for service in WorkerSettings.model_fields},
        }

    @app.post("/api/v1/processes/{name}/restart", summary="Restart a process; the others go on")
    def restart(
        name: Annotated[str, InPath(pattern=r"^[a-z_]{1,20}\.[A-Za-z0-9_-]{1,63}$")], after: BackgroundTasks
    ) -> dict:
        if name not in group_client.owners(group.run_dir):
            raise AppError(f"There is no process {name!r}.", NO_INPUT)
        if name == OWN_NAME:  # the answer must be sent before
            after.add_task(group_client.ask, group, [name], Restart())
            return {}
        for _ in group_client.restart(group, name):
            pass
        return {}

    @app.post("/api/v1/services/{service}/scale", summary="Change the number of processes of a service")
    def scale(service: Annotated[str, InPath(pattern=r"^[a-z_]{1,20}$")], body: Number) -> dict:
        return {"text": scaling.scale(group, service, body.number)}

    if settings.telemetry.prometheus:

        @app.get("/metrics", summary="The group's metrics, for Prometheus", response_class=Response)
        def metrics() -> Response:
            try:
                url = f"http://{settings.telemetry.prometheus}/metrics"
                with urllib.request.urlopen(url, timeout=METRICS_S) as answer:
                    return Response(answer.read(), media_type=answer.headers["Content-Type"])
            except OSError:
                raise AppError("fusion does not answer with its metrics.", SOFTWARE) from None

    @app.websocket("/api/v1/live")
    async def watch(socket: WebSocket) -> None:
        await serve_watcher(socket, live)

    return app


async def _wide_enough(live: LiveFrames, client: Client, source: str, least: int) -> ShownFrame:
    """The next frame; not those that were scaled for somebody with a smaller page."""
    while True:
        _, shown, _ = await live.next_frame(client)
        live.acknowledge(client, source, shown.seq)
        if shown.picture is None or shown.picture.width >= least:
            return shown


class _Processes:
    """The rows of `ps`, asked for at most once in PROCESSES_S, however many browsers look."""

    def __init__(self, group: RunningGroup):
        self._group, self._lock = group, threading.Lock()
        self._rows: list[dict] = []
        self._asked_s = -PROCESSES_S

    def rows(self) -> list[dict]:
        with self._lock:
            if time.monotonic() - self._asked_s > PROCESSES_S:
                self._rows = group_client.process_rows(self._group)
                self._asked_s = time.monotonic()
            return self._rows


def _serve_pages(app: FastAPI) -> None:
    """Everything that is in the folder of pages now; no path of a request is ever opened."""
    files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in PAGES.iterdir() if path.suffix in TYPES}

    def page(name: str) -> Response:
        content, kind = files[name]
        return Response(content, media_type=kind)

    app.get("/", include_in_schema=False)(partial(page, "index.html"))
    for name in files:
        app.get(f"/static/{name}", include_in_schema=False)(partial(page, name))
