"""New weights for a TensorRT engine, straight from ONNX: for a plan built without weights, or other weights."""

import logging
import time

from peoplecounter.common.errors import AppError


def refit(trt, engine, onnx: bytes, log, name: str) -> None:
    """Gives `engine` the weights of an ONNX file. The engine must not be running; a failure may leave it half changed.

    Raises AppError for a runtime that cannot refit, and for weights of another network.
    """
    if not hasattr(trt, "OnnxParserRefitter"):
        raise AppError(f"Weights from ONNX for {name} need the full TensorRT package, not {trt.__name__}.")
    if not engine.refittable:
        raise AppError(f"{name} accepts no other weights: build it with --refit.")
    began_s = time.monotonic()
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(onnx):
        why = parser.get_error(0).desc() if parser.num_errors else log.first_error
        raise AppError(f"The weights do not fit {name}: {why.strip().rstrip('.') or 'no reason given'}.")
    missing = refitter.get_missing_weights()
    if missing:
        raise AppError(f"The weights do not fit {name}: {len(missing)} are missing, for example {missing[0]}.")
    if not refitter.refit_cuda_engine():
        raise AppError(f"The weights do not fit {name}: {log.first_error or 'no reason given'}.")
    logging.getLogger("engine").info("weights refitted in %.2f s", time.monotonic() - began_s)
