"""The image for a GPU is built on this machine, which has none: what it holds, and what its services say."""

import shutil
import subprocess

import pytest

from tests.support.cli import missing_as_root
from tests.support.docker import NEEDED, Docker

pytestmark = pytest.mark.skipif(bool(lacking := missing_as_root(*NEEDED)), reason=f"this machine lacks {lacking}")

IMAGE = "peoplecounter-gpu"
SIZE_MAX_MB = 1000  # unpacked, with Python and all packages


@pytest.fixture(scope="module")
def gpu_docker(source_tree, tmp_path_factory):
    """An engine of its own, built from a tree of its own: its packages are large."""
    tree = tmp_path_factory.mktemp("gpu") / "peoplecounter"
    shutil.copytree(source_tree, tree, ignore=shutil.ignore_patterns("wheels"))
    engine = Docker()
    try:
        engine.build(tree, IMAGE, "history", "gpu-lean", CUBINS="sm90")
        yield engine
    finally:
        engine.close()


def in_image(docker, *command, **variables):
    given = [word for key, value in variables.items() for word in ("-e", f"{key}={value}")]
    words = ["docker", "run", "--rm", "--network", "none", *given, *command]
    return subprocess.run(words, env=docker.environment, capture_output=True, text=True, timeout=60)


def test_the_image_has_no_torch_and_is_small(gpu_docker):
    packages = in_image(
        gpu_docker, "--entrypoint", "sh", IMAGE, "-c", "ls -d /opt/peoplecounter/lib/python3.*/site-packages/*"
    )
    names = {line.rpartition("/")[2] for line in packages.stdout.split()}
    assert {"triton", "cuda", "tensorrt_lean_bindings", "PyNvVideoCodec"} <= names and "torch" not in names
    size_mb = int(gpu_docker.do("docker", "image", "inspect", "-f", "{{.Size}}", IMAGE)) / 1e6
    each = in_image(
        gpu_docker, "--entrypoint", "sh", IMAGE, "-c", "du -sm /opt/peoplecounter/lib/python3.*/site-packages/*"
    )
    largest = sorted(each.stdout.splitlines(), key=lambda line: -int(line.split()[0]))[:8]
    print(
        f"{size_mb:.0f} MB; the largest: "
        + ", ".join(f"{line.split()[0]} {line.rpartition('/')[2]}" for line in largest)
    )
    assert size_mb < SIZE_MAX_MB


def test_kernels_are_compiled_ahead(gpu_docker):
    """Every user of the image can read them, and only root can write them."""
    code = (
        "from peoplecounter.common import cubins as c; print(sum(c._kept(p) is not None for p in c.SHIPPED.iterdir()))"
    )
    done = in_image(gpu_docker, "--entrypoint", "python3", IMAGE, "-c", code)
    assert int(done.stdout) >= 8, done.stderr


@pytest.mark.parametrize("service", ["decoder", "preprocess", "infer_global", "infer_tiles"])
def test_services_refuse_a_machine_without_a_gpu(gpu_docker, service):
    instance = "cam" if service == "decoder" else "0"
    sources = '{"cam": {"url": "rtsp://127.0.0.1/none"}}'
    done = in_image(
        gpu_docker, IMAGE, f"peoplecounter.services.{service}", instance,
        PEOPLECOUNTER_BACKEND="cuda", PEOPLECOUNTER_SOURCES=sources, PEOPLECOUNTER_CONFIG="",
        PEOPLECOUNTER_RUN_DIR="/tmp/group",
    )  # fmt: skip
    assert done.returncode == 78, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and "NVIDIA GPU: no driver or no device" in done.stderr, done.stderr


def test_fusion_needs_no_gpu(gpu_docker):
    """It starts in this image; timeout ends it, as a supervisor would."""
    done = in_image(
        gpu_docker, "--entrypoint", "timeout", IMAGE, "5", "python3", "-P", "-m", "peoplecounter.services.fusion", "0",
        PEOPLECOUNTER_BACKEND="cuda", PEOPLECOUNTER_CONFIG="", PEOPLECOUNTER_RUN_DIR="/tmp/group",
    )  # fmt: skip
    assert "fusion.0: ready" in done.stderr and "Traceback" not in done.stderr, done.stderr
