"""The rooms of the tree keep their walls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from peoplecounter.common.settings import Workers
from peoplecounter.common.topology import SERVICES

ROOT = Path(__file__).parents[2]
GPU = {"torch", "triton", "tensorrt", "cuda", "PyNvVideoCodec"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def test_topology_is_what_lies_in_services():
    folders = {p.parent.name for p in (ROOT / "services").glob("*/__main__.py")}
    assert folders == {service.name for service in SERVICES}
    assert {s.name for s in SERVICES if s.each == "worker"} == set(Workers.model_fields)
    rings = {s.owns for s in SERVICES if s.owns}
    assert {s.reads for s in SERVICES if s.reads} == rings


def test_common_never_imports_services_and_no_service_another():
    for path in sources("common"):
        above = ("peoplecounter.services", "peoplecounter.deploy")
        assert not any(name.startswith(above) for name in imports(path)), path
    for path in sources("services"):
        own = path.relative_to(ROOT / "services").parts[0]
        for name in imports(path):
            assert not name.startswith("peoplecounter.deploy"), path
            assert not name.startswith("peoplecounter.services.") or name.split(".")[2] == own, path


@pytest.mark.parametrize("service", SERVICES, ids=lambda s: s.name)
def test_a_service_starts_without_any_gpu_package(service):
    code = (
        f"import sys, peoplecounter.services.{service.name}.__main__; print(*{{m.split('.')[0] for m in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not GPU & set(done.stdout.split())


def test_nothing_is_ever_unpickled():
    for folder in ("common", "services", "deploy"):
        for path in sources(folder):
            assert not {"pickle", "marshal", "shelve"} & set(imports(path)), path
            assert "recv_pyobj" not in path.read_text(), path
