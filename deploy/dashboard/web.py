"""The web side of the dashboard: pages, API and WebSocket, on an asyncio loop in a thread of its own."""

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.settings import DashboardSettings
from peoplecounter.deploy.dashboard.api import make_api
from peoplecounter.deploy.dashboard.guard import Guard, url_of
from peoplecounter.deploy.dashboard.happenings import Happenings
from peoplecounter.deploy.dashboard.known import Known
from peoplecounter.deploy.dashboard.live import LiveFrames
from peoplecounter.deploy.dashboard.past import Past
from peoplecounter.deploy.dashboard.tokens import Doorkeeper
from peoplecounter.deploy.group.client import RunningGroup

CONNECTIONS_MAX = 256
PATIENCE_S = 8.0  # until a request is whole
MESSAGE_MAX = 1 << 16  # bytes of a WebSocket message from a client
HEADERS_MAX = 1 << 14
UPDATE_S = 1.0
START_S, END_S = 10.0, 3.0


class ImpatientHttp(H11Protocol):
    """Closes a connection on which a request does not become whole within PATIENCE_S."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waited_s = 0.0
        self.loop.call_later(PATIENCE_S / 4, self._look)

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # ended, or a WebSocket now
            return
        is_kept_alive = self.timeout_keep_alive_task is not None  # between two requests, which has its own limit
        comes = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not is_kept_alive
        self._waited_s = self._waited_s + PATIENCE_S / 4 if comes else 0.0
        if self._waited_s >= PATIENCE_S:
            self.transport.close()
        else:
            self.loop.call_later(PATIENCE_S / 4, self._look)


class WebServer:
    """Serves until close(). Raises AppError for an address that cannot be used, and for a wrong certificate."""

    def __init__(self, group: RunningGroup, known: Known, live: LiveFrames, happenings: Happenings):
        settings = group.settings.dashboard
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._socket = _listen(settings)
        port = self._socket.getsockname()[1]
        self.url = url_of(settings, port)
        self._live, self._happenings, self._known = live, happenings, known
        self._past = Past(group.settings)
        doorkeeper = Doorkeeper(Path(settings.token_file) if settings.token_file else None)
        api = make_api(group, known, live, happenings, self._past, doorkeeper, port)
        config = uvicorn.Config(
            Guard(api, settings, port, doorkeeper), log_config=None, access_log=False, lifespan="off",
            http=ImpatientHttp, loop="asyncio", ws="websockets-sansio", ws_max_size=MESSAGE_MAX, ws_max_queue=16,
            ws_ping_interval=20, ws_ping_timeout=60, ws_per_message_deflate=False, limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=HEADERS_MAX, server_header=False, proxy_headers=False,
            timeout_keep_alive=30, timeout_graceful_shutdown=1,
        )  # fmt: skip
        if settings.tls_key:
            config.ssl_certfile, config.ssl_keyfile = settings.tls_certificate, settings.tls_key
            _check_certificate(settings)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True, name="web")
        self._thread.start()
        until_s = time.monotonic() + START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < until_s:
            time.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raises AppError when nobody answers browsers any more."""
        if not self._thread.is_alive() and not self._server.should_exit:
            raise AppError("The web server has ended: see the log.", SOFTWARE)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(END_S)
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._live.start()
        self._happenings.start()
        chores = [asyncio.create_task(_each(UPDATE_S, self._live.update)), asyncio.create_task(self._follow_days())]
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            for chore in chores:
                chore.cancel()

    async def _follow_days(self) -> None:
        while True:
            self._known.at_midnight = await asyncio.to_thread(self._past.at_midnight)
            await asyncio.sleep(self._past.REFRESH_S)


async def _each(seconds: float, do: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        do()


def _listen(settings: DashboardSettings) -> socket.socket:
    assert settings.address is not None
    host, port = settings.address
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        raise AppError(
            f"The dashboard cannot listen on {settings.listen}: {error.strerror}. Set dashboard.listen to another port."
        ) from None
    return found


def _check_certificate(settings: DashboardSettings) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise AppError(
            f"{settings.tls_certificate} and {settings.tls_key} are not a certificate and its key: "
            f"{error.strerror or error}."
        ) from None
