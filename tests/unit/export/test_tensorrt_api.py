"""What we call of TensorRT exists in the version that constraints.txt pins, and in TensorRT-RTX where it is installed.

The wheel of tensorrt's bindings carries no stubs, and its extension loads only beside the libraries of a GPU's machine.
So the names that the extension of 11.4.0.106 registers are written down here: those of ours that stand, ended by a zero
byte, among its strings. A name that is not among them has to be looked up there before it may be used.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

FILES = ("export/tensorrt.py", "model/backends/tensorrt.py")
VERSION = "11.4.0.106"
OBJECTS = frozenset(
    {"trt", "maker", "network", "parser", "config", "profile", "engine", "context", "refitter", "cache", "log"}
)
"""Names of variables and attributes that hold TensorRT's objects in these files."""
OTHERS = frozenset({"last", "items", "__init__", "__members__", "__version__"})
"""Of our own class that takes TensorRT's log, and Python's."""
RECORDED = frozenset(
    [
        "AMPERE_PLUS",
        "Builder",
        "BuilderFlag",
        "ERROR",
        "ExecutionContextAllocationStrategy",
        "HardwareCompatibilityLevel",
        "ILogger",
        "INPUT",
        "INTERNAL_ERROR",
        "Logger",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "OnnxParserRefitter",
        "REFIT",
        "Refitter",
        "Runtime",
        "STRIP_PLAN",
        "STRONGLY_TYPED",
        "TensorIOMode",
        "USER_MANAGED",
        "add_optimization_profile",
        "bfloat16",
        "build_serialized_network",
        "builder_optimization_level",
        "create_builder_config",
        "create_execution_context",
        "create_network",
        "create_optimization_profile",
        "create_timing_cache",
        "deserialize_cuda_engine",
        "device_memory_size_v2",
        "execute_async_v3",
        "float16",
        "float32",
        "get_error",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_timing_cache",
        "hardware_compatibility_level",
        "num_errors",
        "num_io_tensors",
        "num_layers",
        "parse_from_file",
        "refit_cuda_engine",
        "refit_from_file",
        "serialize",
        "set_device_memory",
        "set_flag",
        "set_input_shape",
        "set_shape",
        "set_tensor_address",
        "set_timing_cache",
    ]
)
RTX_ONLY = frozenset({"ComputeCapability", "num_compute_capabilities", "set_compute_capability"})
"""For engines that are compiled without a GPU, which only TensorRT-RTX does."""
DROPPED = frozenset(
    [
        "EXPLICIT_BATCH",
        "FP16",
        "max_workspace_size",
        "execute_async_v2",
        "build_engine",
        "get_binding_name",
        "num_bindings",
    ]
)
"""Of earlier versions: weakly typed networks, implicit batches and bindings by number."""


def used(root: Path) -> set[str]:
    """Every attribute that is read of, called on or set on one of TensorRT's objects."""
    names = set()
    for file in FILES:
        for node in ast.walk(ast.parse((root / file).read_text())):
            if isinstance(node, ast.Attribute) and chain(node.value) & OBJECTS:
                names.add(node.attr)
    return names - OTHERS


def chain(node: ast.expr) -> set[str]:
    """The names an attribute is reached through, without leading underscores."""
    if isinstance(node, ast.Attribute):
        return {node.attr.lstrip("_")} | chain(node.value)
    if isinstance(node, ast.Call):
        return chain(node.func)
    return {node.id} if isinstance(node, ast.Name) else set()


def test_every_name_is_one_of_the_pinned_version_s(root: Path) -> None:
    assert f"tensorrt=={VERSION}" in (root / "constraints.txt").read_text().splitlines()
    names = used(root)
    assert {"Builder", "execute_async_v3", "STRONGLY_TYPED", "OnnxParserRefitter"} <= names
    assert names - RTX_ONLY <= RECORDED
    assert names >= RECORDED, "no longer used"
    assert not names & DROPPED


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_every_name_is_one_of_tensorrt_rtx_s(root: Path) -> None:
    import tensorrt_rtx

    here = set(dir(tensorrt_rtx))
    for value in vars(tensorrt_rtx).values():
        here |= set(dir(value)) if isinstance(value, type) else set()
    assert used(root) <= here
