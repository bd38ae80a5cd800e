"""What the tests with real footage share."""

import lzma

import pytest


@pytest.fixture(scope="session")
def yolo(footage, tmp_path_factory):
    """A real YOLO26n, unpacked from the test material."""
    path = tmp_path_factory.mktemp("models") / "yolo26n.onnx"
    path.write_bytes(lzma.decompress((footage.parent / "models" / "yolo26n_coco_fp32.onnx.xz").read_bytes()))
    return path
