"""Rows of pointwise, norm, softmax, reduction and quantising operators over [rows, cols].

A table that has a column `kind` may call an operator by the framework's own name (``aten.cat.default``); columns
`bytes_read`, `bytes_written`, `vector_flops` and `special_flops` stand for what rows and columns do not tell of
broadcast, gathered or converted operands. Operators of other tables go by the names of `OPERATORS`.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.ir import FREE_KINDS, MATRIX_KINDS, FormatError, OpKind
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


STREAMED: Final = tuple(
    str(kind) for kind in OpKind if kind not in MATRIX_KINDS | FREE_KINDS | {OpKind.COLLECTIVE, OpKind.OTHER}
)
"""Kinds that a row may say."""
_SCORES: Final = {"norm": "norm", "softmax": "softmax"}
MOST_NAMES: Final = 2000
"""Operators of the framework's own names that one table may hold."""


def _named(op: str, kind: str) -> str:
    """*op* as a row of *kind* calls it: of an operator that tables have no name for, both."""
    name = _normal(op)
    if name in OPERATORS or kind not in STREAMED or not re.fullmatch(r"\w+(\.\w+){1,2}", op):
        return name
    return f"{op}\0{kind}"


def _operator(key: str) -> Operator | None:
    """What a row is, by its `_named`."""
    name, _, kind = key.partition("\0")
    return Operator(OpKind(kind), name, _SCORES.get(kind, "elementwise")) if kind else OPERATORS.get(key)


def _ops(table: Table) -> Text:
    found = table.text("op").joined(table.text("kind", ""), _named)
    own = sum("\0" in value for value in found.values)
    if own > MOST_NAMES:
        raise FormatError(f"{table.path}: column 'op' names {own:,} operators: expected few names")
    return found


def _normal(name: str) -> str:
    key = name.strip().lower()
    return _ALSO.get(key, key)


def kinds(table: Table) -> Text:
    """[n] elementwise, norm, softmax, quantize."""
    return _ops(table).map(lambda key: known.score if (known := _operator(key)) else "elementwise")


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows of operators that we do not know."""
    return unfit(_ops(table), lambda v: _operator(v) is not None, lambda v: f"op {v} is none that we know")


def blocks(table: Table) -> list[Block]:
    """One operator each row."""
    op = _ops(table)
    found = []
    for value in op.values:
        if value == "fp8_compute_scale":
            found.append(scale_block(table, table.number("rows"), table.number("cols")).take(op.is_in({value})))
        elif (operator := _operator(value)) is not None:
            found.append(_block(table, op.is_in({value}), operator))
    return found


def _block(table: Table, chosen: Mask, operator: Operator) -> Block:
    dtype = table.text("dtype").take(chosen)
    rows, cols = table.number("rows")[chosen], table.number("cols")[chosen]
    inputs = table.number("n_in", operator.inputs)[chosen]
    element, elements = operand_bytes(dtype), rows * cols
    bare = operator.name.split(".")[1]
    special = operator.kind is OpKind.SOFTMAX or (bare in SPECIAL_FUNCTIONS and not operator.exponent <= 3)
    written = element if operator.out_bytes is None else operator.out_bytes
    reckoned = {
        "bytes_read": (inputs * elements + operator.weights * cols) * element,
        "bytes_written": elements * written + operator.statistics * rows * 4.0,
        "vector_flops": VECTOR_FLOPS_PER_ELEMENT.get(operator.kind, 0) * elements,
        "special_flops": elements * float(special),
    }
    said = {name: table.number(name, np.nan)[chosen] for name in reckoned}
    work = {name: np.where(said[name] >= 0, said[name], value) for name, value in reckoned.items()}
    return Block(
        np.flatnonzero(chosen),
        operator.kind,
        operator.name,
        compute_codes(dtype),
        {"rows": rows, "cols": cols, "exponent": operator.exponent},
        work["bytes_read"],
        work["bytes_written"],
        vector_flops=work["vector_flops"],
        special_flops=work["special_flops"],
        length=cols,
    )
