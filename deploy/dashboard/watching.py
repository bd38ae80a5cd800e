"""The WebSocket of pictures: what a client says, and what it gets."""

import asyncio
import contextlib
import struct
import time

import msgspec
from fastapi import WebSocket, WebSocketDisconnect

from peoplecounter.deploy.dashboard.live import Client, ClientMessage, LiveFrames

MESSAGES_MAX = 2000  # from a client in a second
ALLOWED_S = 1.0  # how often it is asked whether the client still may look


async def serve_watcher(socket: WebSocket, live: LiveFrames) -> None:
    """Serves one client to its end. A wrong message ends it with code 1008."""
    client = Client()
    if not live.enter(client):
        return await socket.close(1013, "Too many are looking: try again later.")
    await socket.accept()
    tasks = [asyncio.create_task(_send(socket, live, client)), asyncio.create_task(_end_when_forbidden(socket))]
    try:
        await _receive(socket, live, client)
    except (msgspec.MsgspecError, ValueError) as error:
        await socket.close(1008, str(error)[:120])
    finally:
        live.leave(client)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(socket: WebSocket, live: LiveFrames, client: Client) -> None:
    decoder, second, messages = msgspec.json.Decoder(ClientMessage), 0, 0
    while True:
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            return
        if received.get("text") is None:
            raise ValueError("messages are text")
        message = decoder.decode(received["text"])
        now_s = int(time.monotonic())
        messages, second = (messages + 1 if now_s == second else 1), now_s
        if messages > MESSAGES_MAX:
            raise ValueError(f"more than {MESSAGES_MAX} messages in a second")
        if message.watch is not None:
            live.watch(client, message.watch)
        if message.ack is not None:
            live.acknowledge(client, message.ack, message.seq)


async def _end_when_forbidden(socket: WebSocket) -> None:
    """Whose session has ended, or who was taken out of the file of tokens, sees no more."""
    while socket.state.is_allowed():
        await asyncio.sleep(ALLOWED_S)
    with contextlib.suppress(RuntimeError):
        await socket.close(1008, "Log in first.")


async def _send(socket: WebSocket, live: LiveFrames, client: Client) -> None:
    try:
        while True:
            source, shown, width = await live.next_frame(client)
            jpeg = await live.jpeg(source, shown, width)
            await socket.send_bytes(struct.pack(">I", len(shown.about)) + shown.about + jpeg)
    except (WebSocketDisconnect, RuntimeError):  # it has gone
        pass
