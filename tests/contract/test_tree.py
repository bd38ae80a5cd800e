"""The rooms of the tree keep their walls."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from peoplecounter.common.settings import WorkerSettings
from peoplecounter.common.topology import SERVICES
from tests.support.cli import ROOT

ROOMS = ("common", "services", "deploy")
GPU = {"torch", "triton", "tensorrt", "cuda", "PyNvVideoCodec"}
SAME_IN_EACH_SERVICE = {"service"}  # module names that may occur once per service
# what deploy may use of a service: pure functions, and what plays a file; never its loop
OPEN_TO_DEPLOY = {
    "services.decoder.nvdec", "services.decoder.playback", "services.fusion.lines", "services.fusion.merge",
    "services.history.tables", "services.preprocess.kernels", "services.preprocess.launches",
    "services.decoder.ffmpeg",
}  # fmt: skip


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path):
    """common/ipc/link.py -> common.ipc.link"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in sources(*ROOMS)}


def imports(path, at_start_only=False):
    """Names of the imported modules; those inside of functions are imported late and make no circle."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("peoplecounter.") in MODULES else node.module


def own_imports(path, **options):
    return {
        name.removeprefix("peoplecounter.") for name in imports(path, **options) if name.startswith("peoplecounter.")
    }


def room_problems(name, imported):
    """Why a module of this name may not import these; empty: it may."""
    room, *rest = name.split(".")
    for other in imported:
        other_room, *other_rest = other.split(".")
        upward = (room == "common" and other_room != "common") or (room, other_room) == ("services", "deploy")
        another = room == other_room == "services" and other_rest[:1] != rest[:1]
        closed = (room, other_room) == ("deploy", "services") and other not in OPEN_TO_DEPLOY
        if upward or another or closed:
            yield f"{name} imports {other}"


def path_problems(tree, rooms):
    """String constants, other than docstrings, that name a room's folder: a way around the imports."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            first, *_ = node.value.split("/")
            if first in rooms and " " not in node.value:
                yield node.value


def test_topology_is_what_lies_in_services():
    modules = {module(p) for p in (ROOT / "services").glob("*/__main__.py")}
    assert modules == {f"services.{row.name}.__main__" for row in SERVICES if not row.elsewhere}
    assert {row.name for row in SERVICES if row.elsewhere} == {"dashboard"}  # it uses what commands use
    assert {row.name for row in SERVICES if row.each == "worker"} == set(WorkerSettings.model_fields)
    assert {row.reads for row in SERVICES if row.reads} == {row.owns for row in SERVICES if row.owns}


def test_every_folder_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in sources(*ROOMS)}
    assert sorted(listed) == sorted("peoplecounter." + ".".join(folder.parts) for folder in folders)


def test_rooms_import_only_what_they_may():
    problems = [p for name, path in MODULES.items() for p in room_problems(name, own_imports(path))]
    problems += [f"{path}: {text!r}" for path in sources("common", "services")
                 for text in path_problems(ast.parse(path.read_text()), {"deploy", "services"})]  # fmt: skip
    assert not problems


def test_the_walls_see_what_is_wrong():
    assert list(room_problems("common.x", {"deploy.demo"})) and list(room_problems("common.x", {"services.fusion"}))
    assert list(room_problems("services.fusion.x", {"services.decoder.reader"}))
    assert list(room_problems("deploy.x", {"services.fusion.__main__"}))
    assert not list(room_problems("services.fusion.x", {"services.fusion.join", "common.ipc"}))
    reaching = 'MODEL = Path(__file__).parents[2] / "deploy" / "demo"\nOTHER = "deploy/demo/plaza.onnx"'
    assert set(path_problems(ast.parse(reaching), {"deploy"})) == {"deploy", "deploy/demo/plaza.onnx"}


def test_imports_make_no_circle():
    graph = {name: own_imports(path, at_start_only=True) & MODULES.keys() - {name} for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_two_modules_or_classes_of_one_name():
    modules = Counter(path.stem for path in MODULES.values() if not path.stem.startswith("__"))
    assert not [name for name, times in modules.items() if times > 1 and name not in SAME_IN_EACH_SERVICE]
    classes = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, times in classes.items() if times > 1]


def test_services_name_rings_and_parts_only_by_topology():
    names = {row.owns for row in SERVICES if row.owns} | {row.part for row in SERVICES if row.part}
    for path in sources("services", "common/inference"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in names - {"frame"}), (path, node.lineno)


@pytest.mark.parametrize("row", SERVICES, ids=lambda row: row.name)
def test_a_service_starts_without_any_gpu_package(row):
    name = f"{row.module}.__main__"
    code = f"import sys, {name}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not GPU & set(done.stdout.split())


def test_modules_for_a_builders_own_python_need_the_standard_library_only():
    """TensorRT's builder may run in another Python than ours, see tests/gpu/build86.py."""
    allowed = {"cuda", "numpy", "tensorrt"}
    todo, seen = ["deploy.engine.build"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        parents = [name.rpartition(".")[0]] if "." in name else []  # importing a module runs its package first
        own = own_imports(MODULES[name]) & MODULES.keys()
        todo += [other for other in (*own, *parents) if other not in seen]
        for imported in imports(MODULES[name]):
            if not imported.startswith("peoplecounter"):
                assert imported.split(".")[0] in sys.stdlib_module_names | allowed, (name, imported)
    assert {"common.files", "common.engine.sidecar", "common.engine", "deploy.engine.timing"} <= seen


def test_nothing_is_ever_unpickled():
    for path in sources(*ROOMS):
        assert not {"pickle", "marshal", "shelve"} & set(imports(path)), path
        assert "recv_pyobj" not in path.read_text(), path
