"""The history: a thread follows the logs, so that a slow database does not make this process look frozen."""

import contextlib
import threading
import time

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.files import Lock, make_private_folder
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.services.history import tables
from peoplecounter.services.history.follow import LogFollower

EVERY_S = 0.5
RETRY_S = (1.0, 30.0)  # the first and the longest wait for a database that is away
FORGET_S = 3600.0
STOP_S = 3.0


class History:
    """Copies logs until it is closed. Raises AppError for a database that can never work."""

    def __init__(self, rt: Runtime):
        settings = rt.settings
        if not settings.history_url:
            raise AppError(
                "There is no database for the history: set data_dir and run pip install 'peoplecounter[history]', or "
                "set history.database."
            )
        make_private_folder(settings.data, "data_dir")
        self._rt, self._stop, self._error = rt, threading.Event(), ""
        self._engine = tables.connect(settings.history_url)
        self._follower = LogFollower(settings.data, self._engine, settings.history)
        self._failure: Exception | None = None
        rt.about = tables.shown(self._engine)
        self._thread = threading.Thread(target=self._run, daemon=True, name="history")
        self._thread.start()

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Ends when what fusion has written is stored; a database that hangs is left alone."""
        self._stop.set()
        self._thread.join(STOP_S)
        self._engine.dispose()

    def _run(self) -> None:
        self._follow()
        until_s = time.monotonic() + STOP_S / 2
        while not self._failure and time.monotonic() < until_s:
            with contextlib.suppress(AppError):  # a fusion still holds its own
                for path in self._rt.settings.data.glob("fusion.*.lock"):
                    Lock(path).close()
                break
            time.sleep(0.05)
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._follower.step()

    def _follow(self) -> None:
        wait_s, ready, forget_s = RETRY_S[0], False, 0.0
        while not self._stop.wait(EVERY_S if ready else 0):
            try:
                if not ready:
                    tables.prepare(self._engine)
                    ready = True
                self._rt.counters["records_stored"] += self._follower.step()
                if time.monotonic() >= forget_s:
                    self._follower.forget(time.time())
                    forget_s = time.monotonic() + FORGET_S
                wait_s = RETRY_S[0]
            except SQLAlchemyError as error:
                if ready and isinstance(error, (DataError, IntegrityError, ProgrammingError)):
                    self._failure = AppError(f"The history cannot be stored: {tables.reason(error)}.", SOFTWARE)
                    return
                ready = False
                self._rt.log.error("the database does not work: %s; it is tried again", tables.reason(error))
                if self._stop.wait(wait_s):
                    return
                wait_s = min(2 * wait_s, RETRY_S[1])
            except OSError as error:
                self._failure = AppError(f"The event logs cannot be read: {error}.", SOFTWARE)
                return
            except Exception as error:
                self._failure = error
                return
