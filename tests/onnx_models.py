"""Small ONNX models by hand, written to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def value(name: str, dims: Dims | None, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, dims)


def weight(name: str, array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Dims | tuple[Dims, int]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Any] | None = None,
) -> GraphProto:
    infos = [
        value(n, *d) if isinstance(d, tuple) and isinstance(d[0], list | tuple) else value(n, d)
        for n, d in inputs.items()
    ]
    known = [weight(n, a) for n, a in (weights or {}).items()]
    return helper.make_graph(nodes, "main", infos, [helper.make_empty_tensor_value_info(o) for o in outputs], known)


def model(*args: Any, opset: int = 20, **kwargs: Any) -> ModelProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph(*args, **kwargs), opset_imports=imports, producer_name="by hand")


def save(proto: ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


node = helper.make_node
