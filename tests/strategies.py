"""What every room's tests draw from: Hypothesis strategies for dims, values and valid graphs; one graph by hand."""

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from foretrace.ir import (
    DTYPES,
    RESIDENT_ROLES,
    DimLike,
    Graph,
    GraphError,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    Work,
    dim_max,
    dim_min,
    op_work,
    prod,
    symbol,
)

SYMBOLS = ("batch", "seq", "context", "h_1")
OP_PHASES = ("forward", "backward", "optimizer")
GRAPH_PHASES = ("forward", "prefill", "decode", "train")

Tree = Any
"""An expression before it is a Dim: an int, a symbol's name, or (operator, left, right)."""
_BUILD = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "min": dim_min,
    "max": dim_max,
}
_VALUE = _BUILD | {"min": min, "max": max}

trees = st.recursive(
    st.integers(-40, 40) | st.sampled_from(SYMBOLS),
    lambda inner: st.tuples(st.sampled_from(sorted(_BUILD)), inner, inner),
    max_leaves=7,
)
bindings = st.fixed_dictionaries({name: st.integers(1, 60) for name in SYMBOLS})


def tree_dim(tree: Tree) -> DimLike:
    """The size a tree stands for; a zero divisor or a size beyond the limits is not drawn."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return symbol(tree)
    operator, left, right = tree
    a, b = tree_dim(left), tree_dim(right)
    try:
        return _BUILD[operator](a, b)
    except (GraphError, ZeroDivisionError):
        assume(False)
        raise


def tree_value(tree: Tree, at: Mapping[str, int]) -> int:
    """The number a tree gives in plain Python; a zero divisor is not drawn."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return at[tree]
    operator, left, right = tree
    a, b = tree_value(left, at), tree_value(right, at)
    assume(b != 0 or operator not in ("//", "%"))
    return _VALUE[operator](a, b)


dims = trees.map(tree_dim)
"""Any size, also negative ones."""

sizes = st.recursive(
    st.integers(0, 8192) | st.sampled_from(SYMBOLS).map(symbol),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "*", "min", "max"]), inner, inner).map(lambda t: _BUILD[t[0]](t[1], t[2])),
        st.tuples(st.sampled_from(["//", "%"]), inner, st.integers(1, 9)).map(lambda t: _BUILD[t[0]](t[1], t[2])),
    ),
    max_leaves=4,
)
"""A size that is never negative where the symbols are not."""
shapes = st.lists(sizes, max_size=4).map(tuple)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "",
        'quo"te',
        "back\\slash",
        "line\nbreak",
        "\u2028\u2029\x85",
        "} forward [1, 2]",
        "größe.层.🙂",
        "\r\t\0",
        "none",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1 << 63, 1 << 64, -(1 << 200), 10**300])
    | st.floats()
    | st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 1e-310])
    | texts
    | dims,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
"""Every attribute value: none, bool, int of any length, float, text, Dim, nested tuples."""
modules = st.sampled_from(["", "model", "model.layers.0.mlp", "model.layers.1.mlp", "0.1", "größe"]) | texts


@st.composite
def symbol_declarations(draw: st.DrawFn) -> dict[str, Symbol]:
    declared = {}
    for name in draw(st.permutations(SYMBOLS)):
        minimum = draw(st.integers(0, 3))
        default = draw(st.integers(max(minimum, 1), 200))
        maximum = draw(st.none() | st.integers(default, 1 << 40))
        declared[name] = Symbol(name, default, minimum, maximum, draw(texts))
    return declared


@st.composite
def graphs(draw: st.DrawFn, max_ops: int = 6) -> Graph:
    """A small valid graph: any kinds, roles, dtypes, phases, views, attributes; matrix kinds with their geometry."""
    dtypes = st.sampled_from(list(DTYPES.values()))
    tensors: list[Tensor] = []

    def tensor(shape: tuple[DimLike, ...], roles: st.SearchStrategy[Role]) -> int:
        owners = [t.storage for t in tensors]
        storage = draw(st.sampled_from([len(tensors), *owners]))
        tensors.append(Tensor(draw(texts), shape, draw(dtypes), draw(roles), storage))
        return len(tensors) - 1

    for _ in range(draw(st.integers(1, 4))):
        tensor(draw(shapes), st.sampled_from(sorted(RESIDENT_ROLES)))
    ops = []
    for _ in range(draw(st.integers(0, max_ops))):
        kind = draw(st.sampled_from(OpKind))
        inputs = draw(st.lists(st.sampled_from(range(len(tensors))), max_size=3))
        geometry, shape = draw(_geometry(kind))
        many = kind not in (OpKind.MATMUL, OpKind.ATTENTION)
        outputs = [tensor(shape, st.sampled_from(Role))]
        outputs += [tensor(draw(shapes), st.sampled_from(Role)) for _ in range(draw(st.integers(0, int(many))))]
        attributes = {**draw(st.dictionaries(texts, values, max_size=3)), **geometry}
        work = draw(st.just(None) | st.builds(Work, *[sizes] * 5))
        name = draw(st.sampled_from(["aten.addmm.default", "onnx::Gemm", "aten.gelu.default"]) | texts)
        if work is None:
            work = op_work(kind, name, attributes, [tensors[t] for t in inputs], [tensors[t] for t in outputs])
        phase = draw(st.sampled_from(OP_PHASES))
        ops.append(Op(kind, name, tuple(inputs), tuple(outputs), attributes, draw(modules), phase, work))
    return Graph(
        draw(texts),
        draw(st.sampled_from(GRAPH_PHASES)),
        draw(symbol_declarations()),
        tuple(tensors),
        tuple(ops),
        draw(st.dictionaries(texts, texts, max_size=3)),
    )


@st.composite
def _geometry(draw: st.DrawFn, kind: OpKind) -> tuple[dict[str, Any], tuple[DimLike, ...]]:
    size = st.integers(1, 64) | st.sampled_from(SYMBOLS).map(symbol)
    if kind in (OpKind.MATMUL, OpKind.GROUPED_MATMUL):
        b, m, n, k = (draw(size) for _ in range(4))
        return {"b": b, "m": m, "n": n, "k": k, "bias": draw(st.booleans())}, (b, m, n)
    if kind is OpKind.ATTENTION:
        batch, q_len, kv_len, head_dim, v_dim = (draw(size) for _ in range(5))
        kv_heads = draw(st.integers(1, 4))
        heads = kv_heads * draw(st.integers(1, 4))
        names = ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_dim")
        a = dict(zip(names, (batch, heads, kv_heads, q_len, kv_len, head_dim, v_dim), strict=True))
        return a, (batch, heads, q_len, v_dim)
    if kind is OpKind.CONVOLUTION:
        return {"k": prod(draw(st.lists(size, max_size=3)))}, draw(shapes)
    return {}, draw(shapes)


def small_graph() -> Graph:
    """Two layers of one linear and a gelu: the graph of the golden files."""
    batch = symbol("batch")
    bf16 = DTYPES["bfloat16"]
    tensors = [Tensor("x", (batch, 64), bf16, Role.INPUT, 0)]
    ops = []

    def op(kind, name, inputs, tensor, attributes, module):
        tensors.append(tensor)
        ins, outs = [tensors[t] for t in inputs], [tensor]
        work = op_work(kind, name.split(".")[1], attributes, ins, outs)
        ops.append(Op(kind, name, tuple(inputs), (len(tensors) - 1,), attributes, module, "forward", work))

    x = 0
    for i in range(2):
        w = len(tensors)
        tensors.append(Tensor(f"layers.{i}.weight", (64, 64), bf16, Role.PARAMETER, w))
        op(OpKind.VIEW, "aten.t.default", [w], Tensor("", (64, 64), bf16, Role.ACTIVATION, w), {}, f"layers.{i}")
        geometry = {"b": 1, "m": batch, "n": 64, "k": 64}
        out = Tensor("", (batch, 64), bf16, Role.ACTIVATION, w + 2)
        op(OpKind.MATMUL, "aten.mm.default", [x, w + 1], out, geometry, f"layers.{i}")
        last = Tensor("y", (batch, 64), bf16, Role.OUTPUT if i else Role.ACTIVATION, w + 3)
        literals = {"approximate": 'ta"nh\n', "scale": (1.5, None, (True, 1 << 64))}
        op(OpKind.ELEMENTWISE, "aten.gelu.default", [w + 2], last, literals, f"layers.{i}")
        x = w + 3
    return Graph(
        "small",
        "forward",
        {"batch": Symbol("batch", 4, 2, 4096, "sequences: Größe\u2028")},
        tuple(tensors),
        tuple(ops),
        {"dtype": "bfloat16", "fixed.seq": "64"},
    )
