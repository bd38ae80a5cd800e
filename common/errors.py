"""Exit codes and the one exception that ends a process with a sentence instead of a traceback."""

CONFIG = 78  # EX_CONFIG: bad setting, wrong model, version mismatch, second owner. A restart would not help.
NO_INPUT = 66  # EX_NOINPUT: the source does not exist
BAD_DATA = 65  # EX_DATAERR: the source is not a video we can decode
SOFTWARE = 70  # EX_SOFTWARE: a bug or a broken device. A restart may help.
RESTART = 75  # EX_TEMPFAIL: it was asked to end and to be started again

FINAL = frozenset({CONFIG, NO_INPUT, BAD_DATA})  # a restart would end the same way


class Refused(Exception):
    """What was wrong, where, and what to do, in one sentence; the process exits with `code`."""

    def __init__(self, sentence: str, code: int = CONFIG):
        super().__init__(sentence)
        self.code = code


class SourceError(Refused):
    """A source that cannot be opened or decoded: missing (NO_INPUT) or not a video (BAD_DATA)."""


class GpuLost(Refused):
    """The GPU failed or does not answer; nothing of this process' CUDA context can be used, not even to clean up."""

    def __init__(self, sentence: str):
        super().__init__(sentence, SOFTWARE)
