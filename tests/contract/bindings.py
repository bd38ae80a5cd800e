"""TensorRT's real Python bindings without TensorRT: what every class has and takes, read from the wheels themselves.

The bindings need the TensorRT libraries only when they are called. So those are taken off the list of what the
extension module loads, their symbols become weak, and the module imports on any x86-64 Linux; pybind11's docstrings
carry every signature. `python -m tests.contract.bindings FOLDER MODULE` prints the description as JSON.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGES = {  # module -> package
    "tensorrt_bindings": "tensorrt_cu13_bindings",
    "tensorrt_lean_bindings": "tensorrt_lean_cu13_bindings",
    "tensorrt_dispatch_bindings": "tensorrt_dispatch_cu13_bindings",
}


def describe(module) -> dict[str, dict]:
    """ "module": its names; "classes": {class: {member: [{"arguments": [[name, optional]], "returns": class}]}}."""
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    return {
        "module": {name: [] for name in dir(module)},
        "classes": {
            name: {member: _signatures(getattr(kind, member, None), member) for member in dir(kind)}
            for name, kind in classes.items()
        },
    }


def _signatures(member: object, name: str) -> list[dict]:
    lines = (getattr(member, "__doc__", "") or "").splitlines() if callable(member) else []
    found = [re.match(rf"(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", line.strip()) for line in lines]
    return [
        {"arguments": _arguments(match[1]), "returns": match[2].rpartition(".")[2]}
        for match in found
        if match and not match[1].startswith("*args")
    ]


def _arguments(text: str) -> list[list]:
    """ "self: a.B, flags: int = 0" -> [["flags", True]]; commas inside brackets do not part arguments."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += character in "[(<{"
        depth -= character in "])>}" and text[i - 1 : i + 1] != "->"
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    named = [(part.partition(":")[0].partition("=")[0].strip(), "=" in part) for part in parts if part]
    return [[name, optional] for name, optional in named if name != "self"]


@cache
def load(module: str, version: str, cached: Path) -> dict[str, dict]:
    """The description of one version's bindings, installed into a folder of their own."""
    folder = cached / f"{module}-{version}"
    if not (folder / "ready").exists():
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
        ]
        subprocess.run([*install, "--target", str(folder), f"{PACKAGES[module]}=={version}"], check=True)
        for library in folder.rglob("*.so"):
            _detach(library)
        (folder / "ready").touch()
    command = [sys.executable, "-m", "tests.contract.bindings", str(folder), module]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _detach(library: Path) -> None:
    """Makes an extension module load without the TensorRT libraries that it was linked with."""
    import lief

    binary = lief.ELF.parse(str(library))
    for needed in [name for name in binary.libraries if name.startswith("libnv")]:
        binary.remove_library(needed)
    exported = re.compile(
        r"^(create\w+_INTERNAL|getNvOnnxParserVersion|get(Builder)?PluginRegistry|initLibNvInferPlugins)$"
    )
    for symbol in binary.imported_symbols:
        if exported.match(symbol.name):
            symbol.binding = lief.ELF.Symbol.BINDING.WEAK
    binary.write(str(library))


if __name__ == "__main__":
    sys.setdlopenflags(os.RTLD_LAZY)
    sys.path.insert(0, sys.argv[1])
    print(json.dumps(describe(importlib.import_module(sys.argv[2]))))
