"""Exit codes, and the exceptions that end a process with one error message instead of a traceback."""

CONFIG = 78  # EX_CONFIG: bad setting, wrong model, version mismatch, second owner. A restart would not help.
NO_INPUT = 66  # EX_NOINPUT: the source does not exist
BAD_DATA = 65  # EX_DATAERR: the source is not a video that can be decoded
SOFTWARE = 70  # EX_SOFTWARE: a bug or a broken device. A restart may help.
RESTART = 75  # EX_TEMPFAIL: the process was asked to end and to be started again

FINAL = frozenset({CONFIG, NO_INPUT, BAD_DATA})  # a restarted process would end in the same way


class AppError(Exception):
    """An error for the user: its message says what is wrong, where, and what to do. The process exits with `code`."""

    def __init__(self, message: str, code: int = CONFIG):
        super().__init__(message)
        self.code = code


class SourceError(AppError):
    """A source that cannot be opened or decoded: it is missing (NO_INPUT) or not a video (BAD_DATA)."""


class ModelOutputError(ValueError):
    """A model gave an output that cannot be read as persons; its text is enough, without a traceback."""


MPS_ERRORS = range(805, 808)  # CUDA_ERROR_MPS_CONNECTION_FAILED, _RPC_FAILURE, _SERVER_NOT_READY: it lets nobody in
MPS_IS_BUSY = "MPS lets no process use the GPU now: it may be recovering from a failure. The process is started again."


class NoGpu(AppError):
    """There is no GPU, or not the one that was asked for."""


class GpuLost(AppError):
    """The GPU failed or does not answer. The process' CUDA context is unusable, even for cleaning up.

    `noted`: another process has noted it already.
    """

    def __init__(self, message: str, noted: bool = False):
        super().__init__(message, SOFTWARE)
        self.noted = noted
