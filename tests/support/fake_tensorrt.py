"""A TensorRT 10.15 whose "plans" are JSON: what its builder, parser, refitter and streams do, without a GPU.

Names and arguments are those of the real bindings (tests/contract checks that). A "network" is what an ONNX file
declares; a plan keeps its flags, profiles and, unless stripped, the hash of every weight.
"""

import hashlib
import json
from enum import IntEnum

import onnx

__version__ = "10.15.1.29"
STEPS, PIECES = 20, 5


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    REFIT = 4
    DISABLE_TIMING_CACHE = 5
    VERSION_COMPATIBLE = 14
    STRIP_PLAN = 20
    REFIT_IDENTICAL = 21


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class LayerType(IntEnum):
    CONVOLUTION = 0
    MATRIX_MULTIPLY = 11
    DEQUANTIZE = 36


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IStreamWriter:
    def write(self, data):
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name, parent_phase, num_steps):
        raise NotImplementedError

    def step_complete(self, phase_name, step):
        raise NotImplementedError

    def phase_finish(self, phase_name):
        raise NotImplementedError


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto):
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        self.dtype = f"DataType.{onnx.TensorProto.DataType.Name(kind.elem_type)}"


class INetworkDefinition:
    def __init__(self):
        self._graph = None

    num_inputs = property(lambda self: len(self._graph.input))
    num_outputs = property(lambda self: len(self._graph.output))

    num_layers = property(lambda self: 0)  # it knows no layers

    def get_layer(self, index):
        raise IndexError(index)

    def get_input(self, index):
        return ITensor(self._graph.input[index])

    def get_output(self, index):
        return ITensor(self._graph.output[index])


class _Error:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return _Error(self._errors[index])

    def parse(self, model, path=None):
        try:
            self._network._graph = onnx.load_from_string(model).graph
        except Exception:
            self._errors.append("Failed to parse the ONNX model")
        return not self._errors


class IOptimizationProfile:
    def set_shape(self, input, min, opt, max):
        self._shapes = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, entries):
        self._entries = entries

    def serialize(self):
        return json.dumps(self._entries).encode()

    def combine(self, input_cache, ignore_mismatch):
        self._entries = {**input_cache._entries, **self._entries}
        return True


class IBuilderConfig:
    def __init__(self):
        self._flags, self._profiles, self._cache, self._pools = set(), [], None, {}
        self.progress_monitor = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.max_aux_streams = 8

    def set_flag(self, flag):
        self._flags.add(flag)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool] = pool_size

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(json.loads(bytes(serialized_timing_cache) or b"{}"))

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class Builder:
    def __init__(self, logger):
        pass

    def create_network(self, flags=0):
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network_to_stream(self, network, config, writer):
        monitor, nodes = config.progress_monitor, [node.op_type for node in network._graph.node]
        if monitor:
            monitor.phase_start("Building Engine", None, STEPS)
        for step in range(STEPS):
            if monitor and not monitor.step_complete("Building Engine", step):
                return False
        if monitor:
            monitor.phase_finish("Building Engine")
        if config._cache is not None:
            config._cache._entries |= {f"{i} {kind}": 1.0 for i, kind in enumerate(nodes)}
        plan = {
            "nodes": nodes,
            "flags": sorted(int(flag) for flag in config._flags),
            "profiles": [profile._shapes for profile in config._profiles],
            "weights": None if BuilderFlag.STRIP_PLAN in config._flags else weights(network._graph),
            "names": sorted(weights(network._graph)),
        }
        data = b"ftrt" + json.dumps(plan).encode()
        size = -(-len(data) // PIECES)
        return all(writer.write(data[i : i + size]) == len(data[i : i + size]) for i in range(0, len(data), size))


class ICudaEngine:
    def __init__(self, plan):
        self._plan = plan
        self.refittable = bool({4, 21} & set(plan["flags"]))


class Refitter:
    def __init__(self, engine, logger):
        self._engine, self._given = engine, {}

    def get_missing_weights(self):
        return [name for name in self._engine._plan["names"] if name not in self._given]

    def refit_cuda_engine(self):
        self._engine._plan["weights"] = self._given
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self._refitter, self._errors = refitter, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return _Error(self._errors[index])

    def refit_from_bytes(self, model, path=None):
        try:
            graph = onnx.load_from_string(model).graph
        except Exception:
            self._errors.append("Failed to parse the ONNX model")
            return False
        if [node.op_type for node in graph.node] != self._refitter._engine._plan["nodes"]:
            self._errors.append("The network is another one")
            return False
        self._refitter._given = weights(graph)
        return True


def weights(graph) -> dict[str, str]:
    return {w.name: hashlib.sha256(w.SerializeToString()).hexdigest() for w in graph.initializer}
