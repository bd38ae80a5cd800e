"""What every request must fulfil before a page or the API sees it: Host, Origin, size, session; and what answers carry.

An ASGI middleware. `scope["state"]["role"]` is what the request may do: "edit", "view", or None.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from peoplecounter.common.settings import DashboardSettings
from peoplecounter.deploy.dashboard.tokens import Doorkeeper, Role, TooManyTries

BODY_MAX = 1 << 16  # bytes of a request
SAFE = ("GET", "HEAD")
HARMLESS = re.compile(r"/api/v1/(logout|sources/[^/]+/try)")  # POSTs that change nothing of the group
OPEN = ("/api/v1/session", "/api/v1/login", "/healthz")  # of the API, for everybody
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
SENT = [(name.encode(), value.encode()) for name, value in HEADERS.items()]  # as ASGI sends them

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    def __init__(self, app: App, settings: DashboardSettings, port: int, doorkeeper: Doorkeeper):
        self._app, self._settings, self._doorkeeper = app, settings, doorkeeper
        self._scheme, self._cookie = "https" if settings.speaks_tls else "http", name_of_cookie(settings, port)
        self._hosts = allowed_hosts(settings, port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(scope, headers)
        if refusal is not None:
            return await _refuse(scope, receive, send, *refusal)
        try:
            role = await self.role(scope, headers)
        except TooManyTries:
            return await _refuse(scope, receive, send, 429, "Too many wrong tokens: wait a minute.")
        needs_role = scope["path"].startswith(("/api/", "/metrics")) and scope["path"] not in OPEN
        if needs_role and role is None:
            why = "Log in first." if _bearer(headers) is None else "This token is not known."
            return await _refuse(scope, receive, send, 401, why)
        harmless = scope["type"] == "websocket" or scope["method"] in SAFE
        changes = not harmless and not (scope["method"] == "POST" and HARMLESS.fullmatch(scope["path"]))
        if needs_role and role == "view" and changes:
            return await _refuse(scope, receive, send, 403, "You have view access only.")
        scope.setdefault("state", {})["role"] = role
        scope["state"]["is_allowed"] = lambda: self._known_role(headers) is not None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SENT]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """(status, why) for a request from elsewhere, or one that is too large."""
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self._hosts:
            return 403, "This is not the name of the dashboard: add it to dashboard.hosts in the settings."
        if origin is not None and origin.lower() != f"{self._scheme}://{host}":
            return 403, "The request comes from another page."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and (
            headers.get("sec-fetch-mode") != "navigate" or scope["path"].startswith("/api/")
        ):
            return 403, "The request comes from another page."
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > BODY_MAX:
            return 413, f"The request must say its length, and be at most {BODY_MAX} bytes."
        return None

    async def role(self, scope: Scope, headers: dict[str, str]) -> Role | None:
        """What the request may do: by its cookie, or by its token in `Authorization: Bearer`. Raises TooManyTries."""
        role = self._known_role(headers)
        if role is None and (token := _bearer(headers)) is not None:
            user = await asyncio.to_thread(self._doorkeeper.user_of, token, address_of(scope, self._settings))
            role = user.role if user else None
        return role

    def _known_role(self, headers: dict[str, str]) -> Role | None:
        """The same for a session, or a token that was right before."""
        if self._doorkeeper.open:
            return "edit"
        token = _bearer(headers)
        if token is not None:
            return self._doorkeeper.role_of_token(token)
        return self._doorkeeper.role_of_cookie(cookie_of(headers.get("cookie", ""), self._cookie))


def url_of(settings: DashboardSettings, port: int) -> str:
    """Where a browser finds the dashboard: by the first of its names, or on this machine."""
    assert settings.address is not None
    host, scheme = settings.address[0], "https" if settings.speaks_tls else "http"
    if settings.hosts:
        name = settings.hosts[0]
        return f"{scheme}://{name}/" if settings.behind_proxy or ":" in name else f"{scheme}://{name}:{port}/"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def allowed_hosts(settings: DashboardSettings, port: int) -> set[str]:
    """What a request's Host may be. A name of the settings without a port may have any that a proxy or we listen on."""
    assert settings.address is not None
    host = settings.address[0]
    own = {f"[{host}]" if ":" in host else host}
    if settings.listens_on_loopback or host in ("0.0.0.0", "::"):
        own |= {"127.0.0.1", "localhost", "[::1]"}
    default = 443 if settings.tls_key else 80
    hosts = {f"{name}:{port}" for name in own} | (own if port == default else set())
    for name in settings.hosts:
        hosts |= {name.lower()} if ":" in name else {name.lower(), f"{name.lower()}:{port}"}
    return hosts


def name_of_cookie(settings: DashboardSettings, port: int) -> str:
    """Of the session: groups of one machine have one each, as browsers do not tell ports apart."""
    return f"{'__Host-' if settings.speaks_tls else ''}peoplecounter-{port}"


def cookie_of(header: str, name: str) -> str:
    """The session in a Cookie header; empty: none."""
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def address_of(scope: Scope, settings: DashboardSettings) -> str:
    """The client's address, as a proxy that is expected says it."""
    if settings.behind_proxy:
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                return value.decode("latin-1").rpartition(",")[2].strip()[:64]
    client = scope.get("client")
    return str(client[0]) if client else ""


def _bearer(headers: dict[str, str]) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": 1008, "reason": why})  # before accept: 403
        return
    body = json.dumps({"error": why}).encode()
    length = str(len(body)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": [*SENT, *own]})
    await send({"type": "http.response.body", "body": body})
