"""When a frame was captured: in seconds that only go forward, for tracks, and in UTC, for events. Pure."""

from datetime import datetime
from zoneinfo import ZoneInfo

from msgspec import Struct

from peoplecounter.common.ipc.messages import FrameHeader

STEP_S = 0.04  # between two frames, until more is known
REWIND_S = 1.0  # a file whose time goes back this far has begun again


class SourceClock(Struct):
    """The clock of one source. A camera's is this machine's; a file's is its own timestamps, from `began_s` on."""

    began_s: float | None = None  # UTC at the time 0 of a file
    offset_s: float = 0.0  # a file that is played again goes on where it ended
    last_s: float | None = None
    step_s: float = STEP_S

    def of(self, header: FrameHeader, captured_s: float, start_s: float | None) -> tuple[float, float, bool]:
        """(time, UTC, True when the pictures begin anew) of a frame.

        `captured_s`: UTC at which its packet arrived. `start_s`: UTC at which a file begins, if its user said so.
        """
        if header.live and start_s is None:
            time_s, utc_s, anew = header.captured_ns / 1e9, captured_s, False
        else:
            time_s, anew = self._played(STEP_S * header.seq if header.pts_s is None else header.pts_s)
            if self.began_s is None:
                self.began_s = captured_s - time_s
            utc_s = time_s + (self.began_s if start_s is None else start_s)
        self.last_s = time_s
        return time_s, utc_s, anew

    def _played(self, pts_s: float) -> tuple[float, bool]:
        time_s = pts_s + self.offset_s
        if self.last_s is None or time_s > self.last_s:
            if self.last_s is not None and time_s - self.last_s < REWIND_S:
                self.step_s = time_s - self.last_s
            return time_s, False
        anew = self.last_s - time_s >= REWIND_S
        if anew:
            self.offset_s += self.last_s + self.step_s - time_s
        return self.last_s + self.step_s, anew


def start_of(start_time: str, timezone: str) -> float | None:
    """UTC, seconds since 1970, of a source's `start_time`; None when it is empty."""
    if not start_time:
        return None
    moment = datetime.fromisoformat(start_time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(timezone))).timestamp()
