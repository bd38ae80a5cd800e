"""Kernels are compiled once, without torch, and kept where only this user or root can write."""

import subprocess
import sys

import pytest

from peoplecounter.common import cubins
from peoplecounter.common.cubins import Cubin, Pointer, TritonFunction, cubin, variant
from peoplecounter.common.errors import AppError
from tests.support.cli import ROOT, peoplecounter

TURN = TritonFunction("peoplecounter.services.decoder.turn_triton", "turn_plane")
NUMBERS = [0, 3, 5, 100, 50, 100, 50, 100, 1.0, 1.0]
CONSTANTS = {"CHANNELS": 1, "BLOCK_Y": 8, "BLOCK_X": 128}


def wanted(stored=512, numbers=NUMBERS):
    return variant(TURN, [Pointer(stored, "u8"), Pointer(0, "u8"), *numbers], CONSTANTS, 4, 90)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.setattr(cubins, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache" / "cubins"


@pytest.fixture
def compiler(monkeypatch):
    """Every variant that was compiled; the compiler itself is in test_a_kernel_is_compiled_without_torch."""
    asked = []
    monkeypatch.setattr(cubins, "compiled", lambda one: asked.append(one) or Cubin("turn_plane", 0, b"code"))
    return asked


def test_a_variant_depends_on_alignment_and_on_ones():
    assert wanted() != wanted(stored=8)
    assert wanted() != wanted(numbers=[1, *NUMBERS[1:]])
    assert wanted().file_name() == wanted(stored=1024).file_name() != wanted(stored=8).file_name()
    assert wanted(numbers=[1, *NUMBERS[1:]]).kinds[2] == "one"


def test_a_kernel_is_compiled_once(cache, compiler):
    first = cubin(wanted())
    assert cubin(wanted()) == first and len(compiler) == 1
    assert [path.name for path in cache.iterdir()] == [wanted().file_name()]


def test_another_text_of_the_module_is_another_kernel(cache, compiler, tmp_path, monkeypatch):
    (tmp_path / "edited_kernel.py").write_text("one")
    monkeypatch.syspath_prepend(tmp_path)
    one = cubins.Variant(TritonFunction("edited_kernel", "f"), (), (), (), 4, 90)
    before = one.file_name()
    (tmp_path / "edited_kernel.py").write_text("two")
    assert one.file_name() != before


@pytest.mark.parametrize("damage", [b"", b"no cubin", b"\x93\xa1"])
def test_a_damaged_file_is_compiled_again(cache, compiler, damage):
    cubin(wanted())
    (cache / wanted().file_name()).write_bytes(damage)
    assert cubin(wanted()).code == b"code" and len(compiler) == 2
    assert cubin(wanted()).code == b"code" and len(compiler) == 2


def test_a_folder_that_others_write_to_is_not_believed(cache, compiler):
    cubin(wanted())
    cache.chmod(0o777)
    cubin(wanted())
    assert len(compiler) == 2


def test_what_an_image_brings_is_used_first(cache, compiler):
    cubins.keep(Cubin("turn_plane", 0, b"shipped"), cubins.SHIPPED / wanted().file_name())
    assert cubin(wanted()).code == b"shipped" and not compiler and not cache.exists()


def test_a_missing_compiler_is_one_sentence(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.compiler", None)
    monkeypatch.setitem(sys.modules, "triton.backends.compiler", None)
    with pytest.raises(AppError, match=r"turn_plane was not compiled ahead .* install triton"):
        cubin(wanted())


def test_a_kernel_is_compiled_without_torch(tmp_path):
    """With the real compiler, for a GPU that is not here."""
    pytest.importorskip("triton", reason="triton is installed for Python 3.11 only, see the extra 'dev'")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tests.pure.test_cubins import wanted\n"
        "from peoplecounter.common.cubins import cubin\n"
        "made = cubin(wanted()); print(made.function, made.code[:4])"
    )
    environment = {"PATH": "/usr/bin", "CACHE_DIRECTORY": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "turn_plane b'\\x7fELF'", done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--warm",), "There is no GPU here"),
        (("--warm", "--target", "sm1"), "'sm1' is unknown: use one of sm75"),
        (("--target", "sm90"), "go with --warm"),
    ],
)
def test_doctor_warm_refuses_in_one_sentence(arguments, said, tmp_path):
    done = peoplecounter(tmp_path, "doctor", *arguments)
    assert done.returncode == 78 and said in done.stderr and len(done.stderr.splitlines()) == 1
