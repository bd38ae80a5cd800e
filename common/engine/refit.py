"""Weights for a TensorRT engine that was built without them, or for others of the same network: straight from ONNX."""

import logging
import time

from peoplecounter.common.errors import Refused


def refit(trt, engine, onnx: bytes, log, name: str) -> None:
    """Gives `engine` the weights of an ONNX file. It must not be running: on failure some of it may have changed.

    Raises Refused, in one sentence, for a runtime that cannot, and for weights of another network.
    """
    if not hasattr(trt, "OnnxParserRefitter"):
        raise Refused(f"{name} takes its weights from ONNX, which needs the full TensorRT package, not {trt.__name__}.")
    if not engine.refittable:
        raise Refused(f"{name} takes no other weights: build it with --refit.")
    began_s = time.monotonic()
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(onnx):
        why = parser.get_error(0).desc() if parser.num_errors else log.first_error
        raise Refused(f"The weights do not fit {name}: {why.strip().rstrip('.') or 'no reason given'}.")
    missing = refitter.get_missing_weights()
    if missing:
        raise Refused(f"The weights do not fit {name}: {len(missing)} are missing, {missing[0]} for one.")
    if not refitter.refit_cuda_engine():
        raise Refused(f"The weights do not fit {name}: {log.first_error or 'no reason given'}.")
    logging.getLogger("engine").info("weights refitted in %.2f s", time.monotonic() - began_s)
