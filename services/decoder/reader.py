"""Plays a source in a thread, so that a hanging camera hangs nothing, and wakes the service's loop for what happens."""

import os
import queue
import threading
from collections.abc import Callable, Iterator

from peoplecounter.common.settings import Decoder, Source
from peoplecounter.services.decoder.playback import Event, Picture, play


class Reader:
    """Runs `play` in a thread. `wake_fd` is readable when take() has something; a full queue holds the thread back.

    `lent`: a picture's pixels are the decoder's, so the thread goes on only when the picture was handled.
    `at_once(picture)` is called in the thread itself, before anybody is woken.
    """

    def __init__(
        self,
        source: Source,
        settings: Decoder,
        after_pts: int | None,
        codec: Callable | None = None,
        lent: bool = False,
        at_once: Callable[[Picture], None] = lambda picture: None,
    ):
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: queue.Queue[Event | Exception] = queue.Queue(maxsize=2)
        self._at_once = at_once
        self._stop, self._lent, self._handled = threading.Event(), lent, threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._run, args=(source, settings, after_pts, codec), daemon=True, name="reader"
        )
        self._thread.start()

    def woken(self) -> None:
        """Makes wake_fd wait for the next event; call it whenever wake_fd is readable."""
        os.eventfd_read(self.wake_fd)

    def take(self) -> Iterator[Event]:
        """What has happened so far; raises what ended the thread."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, Exception):
                raise event
            yield event
            if self._lent and isinstance(event, Picture):
                self._handled.release()

    def close(self) -> None:
        """Stops the thread; one that hangs in FFmpeg is left to die with the process."""
        self._stop.set()
        self._thread.join(timeout=1)

    def _run(self, source: Source, settings: Decoder, after_pts: int | None, codec: Callable | None) -> None:
        try:
            for event in play(source, settings, after_pts, self._stop.wait, codec):
                if isinstance(event, Picture):
                    self._at_once(event)
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
        if self._lent and isinstance(event, Picture):
            while not self._stop.is_set() and not self._handled.acquire(timeout=0.1):
                pass
