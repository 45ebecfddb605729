"""Sizes of operators we have no rule for: onnx's own shape inference, then what the file says of the value."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import TypeProto, helper
from onnx.shape_inference import InferenceError, infer_node_outputs

from foretrace.ir import Dim, DimLike

from .call import Call, Sized
from .values import code_of, dtype_of

_MAX_DIMS: Final = 64


def infer_gap(call: Call) -> list[Sized]:
    """Shape and format of every output of an operator without a rule. Raises where nothing says them."""
    outs = _inferred(call)
    found: list[Sized] = []
    for i, name in enumerate(call.node.output):
        sized = outs.get(name) or call.scope.stated(name)
        if sized is None and name and call.scope.needed(name):
            raise call.fail(
                f"the operator {call.name} is not known and the file does not state the shape of its output {i} "
                f"({name!r}): write the shape into the file's value_info (onnx.helper.make_tensor_value_info)"
            )
        found.append(sized or ((), call.ins[0].dtype if call.ins and call.ins[0] is not None else dtype_of(1, "")))
    return found


def _inferred(call: Call) -> dict[str, Sized]:
    """What onnx infers for the node alone; open sizes go in and come out under made-up names."""
    names: dict[DimLike, str] = {}
    types: dict[str, TypeProto] = {}
    for value, name in zip(call.ins, call.node.input, strict=False):
        if value is not None:
            if value.items is not None:
                return {}
            dims = [d if isinstance(d, int) else names.setdefault(d, f"open{len(names)}") for d in value.shape]
            types[name] = helper.make_tensor_type_proto(code_of(value.dtype), dims)
    opsets = call.scope.opsets
    try:
        schema = onnx.defs.get_schema(call.op, opsets.get(call.domain, 1), call.domain)
        imports = [helper.make_opsetid(d, v) for d, v in opsets.items()]
        results = infer_node_outputs(schema, call.node, types, opset_imports=imports)
    except (
        onnx.defs.SchemaError,
        onnx.checker.ValidationError,
        InferenceError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        IndexError,
    ):
        return {}
    dim_of = {name: dim for dim, name in names.items()}
    found: dict[str, Sized] = {}
    for name, result in results.items():
        kind = result.tensor_type
        sizes: list[DimLike] = [
            dim_of[d.dim_param] if d.dim_param in dim_of else d.dim_value if d.HasField("dim_value") else -1
            for d in kind.shape.dim
        ]
        if kind.HasField("shape") and len(sizes) <= _MAX_DIMS and all(isinstance(d, Dim) or d >= 0 for d in sizes):
            found[name] = (tuple(sizes), dtype_of(kind.elem_type, call.where))
    return found
