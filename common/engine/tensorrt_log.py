"""TensorRT's log, handed on to ours. The builder and the runtime share it; it imports no TensorRT of its own."""

import logging


def logger(trt):
    """A TensorRT ILogger that forwards errors and keeps the first one in `first_error`, for an error message."""
    log = logging.getLogger("tensorrt")

    class Logger(trt.ILogger):  # type: ignore[name-defined]  # TensorRT is the caller's: full, lean or dispatch
        first_error = ""

        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.first_error = self.first_error or message.strip().rstrip(".")
            log.log(logging.INFO if severity == trt.ILogger.ERROR else logging.DEBUG, "%s", message)

    return Logger()
