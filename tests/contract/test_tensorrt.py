"""Every TensorRT name, argument and flag our code uses exists in the real bindings of the versions it is for."""

import inspect
import platform
from pathlib import Path

import pytest

from tests.contract import bindings
from tests.contract.usage import compare, compare_file
from tests.support import fake_tensorrt

ROOT = Path(__file__).parents[2]
LOADER = tuple(f"common/engine/tensorrt{name}.py" for name in ("", "_io", "_log"))
RTX = "common/engine/tensorrt_rtx.py"
BUILDER = ("common/engine/refit.py", "deploy/engine/build.py")
VERSIONS = ("10.15.1.29", "11.4.0.106")  # the oldest that is supported, and the newest there is
FOR_RTX = {"trt.ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
FOR_8_6 = {"BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}  # gone in 11

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the bindings' wheels are read on x86-64 only")


@pytest.fixture(scope="session")
def described(request):
    cached = request.config.cache.mkdir("tensorrt")
    return lambda module, version: bindings.load(module, version, cached)


def problems(usages):
    elsewhere = FOR_8_6 | FOR_RTX
    return [p for usage in usages for p in usage.problems if not any(p.endswith(f"no {name}") for name in elsewhere)]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_full_package_has_all_we_use(described, version):
    usages = [compare_file(ROOT / path, described("tensorrt_bindings", version)) for path in (*LOADER, *BUILDER)]
    assert not problems(usages)
    compared = set().union(*(usage.compared for usage in usages))
    assert compared >= {
        "trt.Builder", "Builder.create_network()", "Builder.build_serialized_network_to_stream()", "OnnxParser.parse()",
        "IBuilderConfig.set_timing_cache()", "IBuilderConfig.progress_monitor", "BuilderFlag.STRIP_PLAN",
        "BuilderFlag.REFIT_IDENTICAL", "ITimingCache.combine()", "IOptimizationProfile.set_shape",
        "IStreamWriter.write", "IProgressMonitor.step_complete", "OnnxParserRefitter.refit_from_bytes()",
        "Refitter.refit_cuda_engine()", "ICudaEngine.refittable", "Runtime.deserialize_cuda_engine()",
        "IExecutionContext.execute_async_v3()", "IExecutionContext.set_optimization_profile_async()",
        "ICudaEngine.get_tensor_profile_shape()", "HardwareCompatibilityLevel.AMPERE_PLUS", "ILogger.INTERNAL_ERROR",
    }  # fmt: skip
    assert len(compared) > 70


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("module", ["tensorrt_lean_bindings", "tensorrt_dispatch_bindings"])
def test_the_small_runtimes_have_all_that_the_loader_uses(described, module, version):
    usages = [compare_file(ROOT / path, described(module, version)) for path in LOADER]
    assert not problems(usages)
    assert len(set().union(*(usage.compared for usage in usages))) > 30


def test_tensorrt_rtx_has_all_that_its_plans_need():
    """Its real library is installed."""
    module = pytest.importorskip("tensorrt_rtx_bindings")
    description = bindings.describe(module)
    usages = [compare_file(ROOT / path, description) for path in (*LOADER, RTX, "deploy/engine/build.py")]
    assert not problems(usages)
    compared = set().union(*(usage.compared for usage in usages))
    assert compared >= {
        "trt.ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability()",
        "IRuntimeConfig.cuda_graph_strategy", "CudaGraphStrategy.DISABLED", "IRuntimeConfig.create_runtime_cache()",
        "IRuntimeConfig.set_runtime_cache()", "IRuntimeCache.deserialize()", "IRuntimeCache.serialize()",
        "ICudaEngine.create_runtime_config()", "ICudaEngine.create_execution_context()",
    }  # fmt: skip


WRONG = {
    "builder.create_netwrok(1)": "there is no Builder.create_netwrok",
    "builder.create_network(1, 2)": "Builder.create_network does not take these arguments",
    "builder.create_network(flag=1)": "Builder.create_network does not take these arguments",
    "config.set_flag(trt.BuilderFlag.STRIP_PLANS)": "there is no BuilderFlag.STRIP_PLANS",
    "config.progres_monitor = None": "there is no IBuilderConfig.progres_monitor",
    "trt.OnnxParserRefiter(1, 2)": "there is no trt.OnnxParserRefiter",
    "trt.Refitter(engine)": "Refitter.__init__ does not take these arguments",
    "network.get_input(0).shapes": "there is no ITensor.shapes",
    "builder.create_builder_config().set_timing_cache(1)": "IBuilderConfig.set_timing_cache does not take",
    "cache = config.create_timing_cache(b''); cache.combin(1, 2)": "there is no ITimingCache.combin",
}


@pytest.mark.parametrize("statement", WRONG)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_name_or_argument_is_found(described, version, statement):
    source = f"def f(trt, builder, config, network, engine):\n    {statement}\n"
    found = compare(source, described("tensorrt_bindings", version), "x.py").problems
    assert len(found) == 1 and WRONG[statement] in found[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_override_that_tensorrt_never_calls_is_found(described, version):
    source = "def f(trt):\n    class W(trt.IStreamWriter):\n        def writes(self, data): pass\n"
    assert "no IStreamWriter.writes" in compare(source, described("tensorrt_bindings", version), "x.py").problems[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_that_other_tests_use_is_like_the_real_one(described, version):
    """Everything the fake has exists, and takes the same arguments."""
    real = described("tensorrt_bindings", version)
    for name, kind in vars(fake_tensorrt).items():
        if not inspect.isclass(kind) or kind.__module__ != fake_tensorrt.__name__ or name.startswith("_"):
            continue
        assert name in real["classes"], name
        for member, value in vars(kind).items():
            if member.startswith("_") or f"{name}.{member}" in FOR_8_6:
                continue
            assert member in real["classes"][name], f"{name}.{member}"
            signatures = [[a for a, _ in s["arguments"]] for s in real["classes"][name][member]]
            if inspect.isfunction(value) and signatures and name not in ("IStreamWriter", "IProgressMonitor"):
                ours = [p for p in inspect.signature(value).parameters if p != "self"]
                assert ours in signatures or any(s[: len(ours)] == ours for s in signatures), f"{name}.{member}{ours}"
