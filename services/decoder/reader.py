"""Plays a source in a thread, so that a hanging camera does not block the service, and wakes the service's loop."""

import os
import queue
import threading
from collections.abc import Callable, Iterator

from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.playback import Event, MakeCodec, Picture, Position, play


class Reader:
    """Runs `play` in a thread. `wake_fd` is readable when take() has events; a full queue holds the thread back.

    `pixels_are_lent`: a picture's pixels belong to the decoder, so the thread goes on only when the picture was
    handled. `on_picture(picture)` is called in the thread itself, before the service is woken.
    """

    def __init__(
        self,
        source: SourceSettings,
        settings: DecoderSettings,
        resume: Position,
        codec: MakeCodec | None = None,
        pixels_are_lent: bool = False,
        on_picture: Callable[[Picture], None] = lambda picture: None,
    ):
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: queue.Queue[Event | Exception] = queue.Queue(maxsize=2)
        self._on_picture, self._pixels_are_lent = on_picture, pixels_are_lent
        self._stop, self._handled = threading.Event(), threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._run, args=(source, settings, resume, codec), daemon=True, name="reader"
        )
        self._thread.start()

    def on_wake(self) -> None:
        """Resets wake_fd; call it whenever wake_fd is readable."""
        os.eventfd_read(self.wake_fd)

    def take(self) -> Iterator[Event]:
        """The events so far. Raises the exception that ended the thread."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, Exception):
                raise event
            yield event
            if self._pixels_are_lent and isinstance(event, Picture):
                self._handled.release()

    def close(self) -> None:
        """Stops the thread; one that hangs in FFmpeg ends with the process."""
        self._stop.set()
        self._thread.join(timeout=1)

    def _run(
        self, source: SourceSettings, settings: DecoderSettings, resume: Position, codec: MakeCodec | None
    ) -> None:
        try:
            for event in play(source, settings, resume, self._stop.wait, codec):
                if isinstance(event, Picture):
                    self._on_picture(event)
                self._put(event)
        except Exception as error:
            self._put(error)

    def _put(self, event: Event | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            os.eventfd_write(self.wake_fd, 1)
            break
        if self._pixels_are_lent and isinstance(event, Picture):
            while not self._stop.is_set() and not self._handled.acquire(timeout=0.1):
                pass
