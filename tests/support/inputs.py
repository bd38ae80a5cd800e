"""Inputs of engines that are unusual in one way each."""

from peoplecounter.common.ipc.messages import Input

INPUTS = {
    "wide": Input(64, 32),
    "high": Input(32, 48),
    "channels last": Input(48, 32, channels_last=True),
    "bytes": Input(32, 32, "uint8", scale=(255.0, 255.0, 255.0), channels_last=True),
    "yolox": Input(32, 32, scale=(255.0, 255.0, 255.0), bgr=True, corner=True),
    "normalized": Input(64, 32, scale=(4.0, 4.5, 5.0), offset=(-2.0, -2.1, -1.8)),
}
