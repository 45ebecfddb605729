"""Rows of pointwise, norm, softmax, reduction and quantising operators over [rows, cols]."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.ir import OpKind
from foretrace.ir.work import SPECIAL_FUNCTIONS, VECTOR_FLOPS_PER_ELEMENT
from foretrace.replay.columns import Mask

from .columns import Block
from .formats import compute_codes, operand_bytes
from .quantise import scale_block
from .tables import Table, Text, unfit

SIZES: Final = ("rows", "cols", "n_in")
OPTIONAL: Final = ("n_in",)


@dataclass(frozen=True)
class Operator:
    """An operator as tables call it."""

    kind: OpKind
    name: str
    score: str
    """What the scores call its kind."""
    inputs: int = 1
    """Tensors read where the table has no `n_in`; of `doubled` ones each is [rows, cols] still."""
    weights: int = 0
    """Vectors of `cols` read."""
    statistics: int = 0
    """Vectors of `rows` written."""
    out_bytes: float | None = None
    """Bytes an element of the result; None: the input's."""
    exponent: float = np.nan


def _pointwise(name: str, inputs: int = 1) -> Operator:
    return Operator(OpKind.ELEMENTWISE, f"aten.{name}", "elementwise", inputs)


OPERATORS: Final = {
    **{
        f"{op}{unary}": _pointwise(f"{op}.Tensor", 1 if unary else 2)
        for op in ("add", "sub", "mul", "div")
        for unary in ("", "u")
    },
    "pow": _pointwise("pow.Tensor_Tensor", 2),
    "powu": Operator(OpKind.ELEMENTWISE, "aten.pow.Tensor_Scalar", "elementwise", exponent=2),
    **{op: _pointwise(f"{op}.default") for op in ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "rsqrt", "neg")},
    "residual_add": _pointwise("add.Tensor", 2),
    "silu_and_mul": Operator(OpKind.ELEMENTWISE, "foretrace.silu_and_mul", "elementwise", 2),
    "copy": Operator(OpKind.COPY, "aten.clone.default", "elementwise"),
    "ln": Operator(OpKind.NORM, "aten.native_layer_norm.default", "norm", weights=2, statistics=2),
    "rmsnorm": Operator(OpKind.NORM, "aten._fused_rms_norm.default", "norm", weights=1, statistics=1),
    "softmax": Operator(OpKind.SOFTMAX, "aten._softmax.default", "softmax"),
    "log_softmax": Operator(OpKind.SOFTMAX, "aten._log_softmax.default", "softmax"),
    "fp8_compute_scale": Operator(OpKind.REDUCTION, "foretrace.compute_scale", "quantize", out_bytes=0.0),
    "fp8_scale_matrix": Operator(OpKind.ELEMENTWISE, "foretrace.quantize.default", "quantize", out_bytes=1.0),
}
"""An operator by its name in a table; a trailing u: the other operand is a number."""

_ALSO: Final = {"layer_norm": "ln", "layernorm": "ln", "rms_norm": "rmsnorm", "clone": "copy"}


def _normal(name: str) -> str:
    key = name.strip().lower()
    return _ALSO.get(key, key)


def kinds(table: Table) -> Text:
    """[n] elementwise, norm, softmax, quantize."""
    return table.text("op").map(lambda op: known.score if (known := OPERATORS.get(_normal(op))) else "elementwise")


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows of operators that we do not know."""
    known = OPERATORS.keys()
    return unfit(table.text("op"), lambda v: _normal(v) in known, lambda v: f"op {v} is none that we know")


def blocks(table: Table) -> list[Block]:
    """One operator each row."""
    op = table.text("op").map(_normal)
    found = []
    for value in op.values:
        if value == "fp8_compute_scale":
            found.append(scale_block(table, table.number("rows"), table.number("cols")).take(op.is_in({value})))
        elif value in OPERATORS:
            found.append(_block(table, op.is_in({value}), OPERATORS[value]))
    return found


def _block(table: Table, chosen: Mask, operator: Operator) -> Block:
    dtype = table.text("dtype").take(chosen)
    rows, cols = table.number("rows")[chosen], table.number("cols")[chosen]
    inputs = table.number("n_in", operator.inputs)[chosen]
    element, elements = operand_bytes(dtype), rows * cols
    bare = operator.name.split(".")[1]
    special = operator.kind is OpKind.SOFTMAX or (bare in SPECIAL_FUNCTIONS and not operator.exponent <= 3)
    written = element if operator.out_bytes is None else operator.out_bytes
    return Block(
        np.flatnonzero(chosen),
        operator.kind,
        operator.name,
        compute_codes(dtype),
        {"rows": rows, "cols": cols, "exponent": operator.exponent},
        (inputs * elements + operator.weights * cols) * element,
        elements * written + operator.statistics * rows * 4.0,
        vector_flops=VECTOR_FLOPS_PER_ELEMENT.get(operator.kind, 0) * elements,
        special_flops=elements * float(special),
        length=cols,
    )
