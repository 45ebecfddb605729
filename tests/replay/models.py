"""Hand-made graphs for the tests of replay and transforms, and a small system whose figures divide well."""

from collections.abc import Mapping
from typing import Any

from foretrace.hardware import System
from foretrace.ir import DimLike, Graph, Op, OpKind, Role, Symbol, Tensor, op_work, parse_dtype, prod, symbol, verify
from foretrace.replay import Result, replay_graph

BATCH = symbol("batch")
SEQ = symbol("seq")


class Builder:
    """Adds tensors and ops one by one; `graph` verifies what came of them."""

    def __init__(self, dtype: str = "float16") -> None:
        self.dtype = parse_dtype(dtype)
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []

    def tensor(
        self,
        name: str,
        *shape: DimLike,
        role: Role = Role.ACTIVATION,
        dtype: str | None = None,
        storage: int | None = None,
    ) -> int:
        at = len(self.tensors)
        own = at if storage is None else storage
        self.tensors.append(Tensor(name, shape, parse_dtype(dtype) if dtype else self.dtype, role, own))
        return at

    def weight(self, name: str, *shape: DimLike) -> int:
        return self.tensor(name, *shape, role=Role.PARAMETER)

    def op(
        self,
        kind: OpKind,
        name: str,
        inputs: list[int],
        outputs: list[int],
        module: str = "",
        phase: str = "forward",
        **attributes: Any,
    ) -> int:
        tensors = [[self.tensors[t] for t in ids] for ids in (inputs, outputs)]
        work = op_work(kind, name.split(".")[1] if "." in name else name, attributes, *tensors)
        self.ops.append(Op(kind, name, tuple(inputs), tuple(outputs), attributes, module, phase, work))
        return outputs[0] if outputs else -1

    def matmul(
        self, x: int, weight: int, module: str = "", phase: str = "forward", role: Role = Role.ACTIVATION
    ) -> int:
        rows, (k, n) = prod(self.tensors[x].shape[:-1]), self.tensors[weight].shape
        out = self.tensor("mm", *self.tensors[x].shape[:-1], n, role=role)
        return self.op(OpKind.MATMUL, "aten.mm.default", [x, weight], [out], module, phase, b=1, m=rows, n=n, k=k)

    def pointwise(
        self,
        function: str,
        *inputs: int,
        module: str = "",
        phase: str = "forward",
        kind: OpKind = OpKind.ELEMENTWISE,
        role: Role = Role.ACTIVATION,
        in_place: bool = False,
    ) -> int:
        x = self.tensors[inputs[0]]
        out = self.tensor(function, *x.shape, role=role, storage=x.storage if in_place else None)
        return self.op(kind, f"aten.{function}.default", list(inputs), [out], module, phase)

    def view(self, x: int, *shape: DimLike, module: str = "", name: str = "view") -> int:
        out = self.tensor(name, *shape, role=self.tensors[x].role, storage=self.tensors[x].storage)
        return self.op(OpKind.VIEW, f"aten.{name}.default", [x], [out], module)

    def graph(self, name: str = "hand-made", phase: str = "forward") -> Graph:
        symbols = {s: Symbol(s, default) for s, default in (("batch", 2), ("seq", 8))}
        return verify(Graph(name, phase, symbols, tuple(self.tensors), tuple(self.ops), {}))


def mlp() -> Graph:
    """linear, gelu, a view, scale, linear: [batch, 256] fp16, hidden 1024."""
    b = Builder()
    x = b.tensor("x", BATCH, 256, role=Role.INPUT)
    w1, w2 = b.weight("w1", 256, 1024), b.weight("w2", 1024, 256)
    h = b.matmul(x, w1, "mlp.up")
    g = b.pointwise("gelu", h, module="mlp.act")
    v = b.view(g, BATCH, 1024, module="mlp.act")
    s = b.pointwise("mul", v, module="mlp.act")
    b.matmul(s, w2, "mlp.down", role=Role.OUTPUT)
    return b.graph("mlp")


def transformer(layers: int = 2, width: int = 64, heads: int = 4) -> Graph:
    """A decoder stack: about 20 ops a layer, symbols batch and seq."""
    b = Builder("bfloat16")
    x = b.tensor("x", BATCH, SEQ, width, role=Role.INPUT)
    for layer in range(layers):
        x = _layer(b, x, f"model.layers.{layer}", width, heads)
    out = b.pointwise("native_layer_norm", x, module="model.norm", kind=OpKind.NORM)
    b.matmul(out, b.weight("head", width, 4 * width), "lm_head", role=Role.OUTPUT)
    return b.graph("transformer", "prefill")


def _layer(b: Builder, x: int, path: str, width: int, heads: int) -> int:
    head_dim = width // heads
    n = b.pointwise("native_layer_norm", x, module=f"{path}.ln1", kind=OpKind.NORM)
    qkv = []
    for p in "qkv":
        y = b.matmul(n, b.weight(f"{path}.{p}", width, width), f"{path}.attn.{p}")
        split = b.view(y, BATCH, SEQ, heads, head_dim, module=f"{path}.attn")
        qkv.append(b.view(split, BATCH, heads, SEQ, head_dim, module=f"{path}.attn", name="transpose"))
    a = b.tensor("attention", BATCH, heads, SEQ, head_dim)
    sizes = {"batch": BATCH, "heads": heads, "kv_heads": heads, "q_len": SEQ, "kv_len": SEQ}
    b.op(
        OpKind.ATTENTION,
        "aten.scaled_dot_product_attention.default",
        qkv,
        [a],
        f"{path}.attn",
        head_dim=head_dim,
        v_dim=head_dim,
        causal=True,
        **sizes,
    )
    o = b.matmul(b.view(a, BATCH, SEQ, width, module=path), b.weight(f"{path}.o", width, width), f"{path}.attn.o")
    x = b.pointwise("add", x, o, module=path)
    n = b.pointwise("native_layer_norm", x, module=f"{path}.ln2", kind=OpKind.NORM)
    gate = b.matmul(n, b.weight(f"{path}.gate", width, 4 * width), f"{path}.mlp.gate")
    up = b.matmul(n, b.weight(f"{path}.up", width, 4 * width), f"{path}.mlp.up")
    h = b.pointwise("mul", b.pointwise("silu", gate, module=f"{path}.mlp"), up, module=f"{path}.mlp")
    down = b.matmul(h, b.weight(f"{path}.down", 4 * width, width), f"{path}.mlp.down")
    return b.pointwise("add", x, down, module=path)


def system(
    kind: str = "gpu",
    *,
    count: int = 1,
    matrix: Mapping[str, float] | None = None,
    vector: float = 1e12,
    bandwidth: float = 1e11,
    capacity: float = 1e9,
    floor_s: float = 1e-6,
    dispatch_s: float = 4e-6,
    launch_s: float = 2e-6,
    graph_launch_s: float = 10e-6,
    special_per_clock: float | None = 1.0,
) -> System:
    """One chip of round figures: 1 TFLOP/s vector, 10 TFLOP/s fp16 matrix, 100 GB/s, floor 1 us, dispatch 4 us."""
    chip = {
        "name": "round",
        "kind": kind,
        "vendor": "test",
        "generation": "test",
        "cores": 100,
        "clock": 1e9,
        "compute": {
            "matrix": {"float16": 1e13, "bfloat16": 1e13} if matrix is None else matrix,
            "vector": {"float32": vector},
            "special_per_clock": special_per_clock,
        },
        "memory": {"capacity": capacity, "bandwidth": bandwidth},
        "launch_floor": floor_s,
        "node_size": 8,
    }
    host = {
        "name": "host",
        "cores": 8,
        "clock": 1e9,
        "memory_bandwidth": 1e11,
        "dispatch": dispatch_s,
        "launch": launch_s,
        "graph_launch": graph_launch_s,
    }
    whole = {
        "name": "round",
        "accelerator": chip,
        "count": count,
        "node_size": 8,
        "host": host,
        "network": {"scale_up": {"bandwidth": 1e11}},
    }
    return System.model_validate(whole, context={"si": True})


def replay_roofline(graph: Graph, on: System, **options: Any) -> Result:
    """`replay_graph` with the costs whose figures a test can work out by hand."""
    return replay_graph(graph, on, **{"costs": "roofline", **options})
