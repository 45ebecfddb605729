"""The ops and tensors of a Graph while they come in: what is computed, what is only known, what nobody needs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from onnx import NodeProto, TensorProto

from foretrace.ir import (
    Dim,
    DimLike,
    ForetraceError,
    Op,
    OpKind,
    Role,
    Shape,
    Symbol,
    Tensor,
    Work,
    evaluate_dim,
    op_work,
    prod,
    symbol,
)

from . import operators
from .call import Call
from .classical import linear_geometry, linear_scores
from .geometry import convolution_flops
from .values import Value

GATES: Final = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}
_INTEGERS: Final = frozenset({"int64", "int32", "bool", "uint64", "uint32"})


class Recorder:
    """Collects tensors and ops; `repeats` multiplies the work of what runs in a loop that is not unrolled."""

    def __init__(self, symbols: Mapping[str, Symbol], given: Collection[str], statistics: frozenset[str]) -> None:
        self.symbols, self.given = dict(symbols), given
        self.statistics = statistics
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.notes: list[str] = []
        self.repeats: DimLike = 1
        self.roots: set[int] = set()
        self.nodes = 0
        self._outside: dict[tuple[str, ...], int] = {}

    def defaults(self) -> dict[str, int]:
        """Symbol → default."""
        return {name: s.default for name, s in self.symbols.items()}

    def open(self, name: str, default: int, description: str) -> DimLike:
        """A new open size."""
        while name in self.symbols:
            name += "_"
        self.symbols[name] = Symbol(name, max(default, 1), 1, None, description)
        return symbol(name)

    def limit(self, size: DimLike, most: DimLike, where: str) -> bool:
        """*size* is at most *most*, or the graph makes no sense; gives whether that holds by default."""
        if isinstance(most, int) and (s := self.symbols.get(str(size))) is not None:
            if s.default > most and s.name in self.given:
                raise ForetraceError(f"--dim {s.name}={s.default}: {where} is for {s.name} of at most {most}")
            self.symbols[s.name] = replace(s, default=min(s.default, most), maximum=min(most, s.maximum or most))
            return True
        self.notes.append(f"{where}: takes {size} to be at most {most}")
        at = self.defaults()
        return bool(evaluate_dim(size, at) <= evaluate_dim(most, at))

    def keep_positive(self, shape: Shape) -> None:
        """A size such as ``n - 2`` needs an n of at least 2."""
        for d in shape:
            if isinstance(d, Dim) and len(d.terms) == 2:
                (atoms, one), (rest, constant) = d.terms
                s = self.symbols.get(str(atoms[0])) if len(atoms) == 1 and one == 1 and not rest else None
                if s is not None and s.minimum < -constant <= (s.maximum or -constant):
                    if s.name in self.given and s.default < -constant:
                        raise ForetraceError(f"--dim {s.name}={s.default}: the size {d} would be negative")
                    self.symbols[s.name] = replace(s, default=max(s.default, -constant), minimum=-constant)

    def count(self, most: int) -> None:
        """One more node runs."""
        self.nodes += 1
        if self.nodes > most:
            raise ForetraceError(f"more than {most:,} operators run, loops and functions included")

    def declare(self, value: Value, role: Role, name: str) -> int:
        """A tensor that is there before the step."""
        value.tensor = self._add(value, role, name)
        return value.tensor

    def declare_weight(self, value: Value, proto: TensorProto) -> None:
        """A tensor the file holds: a parameter, or a buffer if it is an index table, a statistic or a literal number.

        Tensors at one place of the same external file share their storage.
        """
        number = not value.shape or (value.elements == 1 and not re.search("weight|bias", value.source))
        buffer = number or value.dtype.name in _INTEGERS or value.source in self.statistics
        value.tensor = self._add(value, Role.BUFFER if buffer else Role.PARAMETER, value.source)
        if proto.data_location == TensorProto.EXTERNAL:
            place = tuple(
                f"{e.key}={e.value}" for e in proto.external_data if e.key in ("location", "offset", "length")
            )
            first = self._outside.setdefault(place, value.tensor)
            if self.tensors[first].bytes == self.tensors[value.tensor].bytes:
                self.tensors[value.tensor] = replace(self.tensors[value.tensor], storage=first)

    def _add(self, value: Value, role: Role, name: str, storage: int | None = None) -> int:
        number = len(self.tensors)
        self.tensors.append(Tensor(name, value.shape, value.dtype, role, number if storage is None else storage))
        return number

    def tensor(self, value: Value) -> int:
        """The id of *value* among the tensors; one that is only known becomes a buffer."""
        return self.declare(value, Role.BUFFER, value.source) if value.tensor is None else value.tensor

    def op(self, call: Call, outs: Sequence[Value]) -> None:
        """Record what *call* computes."""
        kind = operators.kind_of(call)
        if (
            call.ins
            and all(v.constant for v in outs)
            and call.op != "DequantizeLinear"
            and self._folded(call, kind, outs)
        ):
            return
        if call.op in GATES:
            self._recurrent(call, outs)
        elif call.op in ("Attention", "QAttention") and call.domain:
            self._packed_attention(call, outs)
        elif call.op == "LinearClassifier":
            label, scores = outs[0], outs[1] if len(outs) > 1 else linear_scores(call)
            self.add(call, kind, [call.value(0)], [scores], linear_geometry(call))
            self.add(call, OpKind.REDUCTION, [scores], [label], {})
        else:
            rule = operators.rule_of(call)
            operands = range(len(call.ins)) if rule.operands is None else rule.operands
            ins = [v for i in operands if (v := call.given(i)) is not None]
            geometry = rule.geometry(call) if rule.geometry else {}
            self.add(call, kind, ins, outs, call.literals() | geometry)

    def _folded(self, call: Call, kind: OpKind, outs: Sequence[Value]) -> bool:
        """What is computed of constants alone is computed once, when the model is loaded: no op of a step.

        Weights in another order or format keep their storage, so that they count once; what is made of several
        (an LSTM's gates put in order) stands for them.
        """
        sources = {self.tensors[v.tensor].role for v in call.ins if v is not None and v.tensor is not None}
        role = Role.PARAMETER if Role.PARAMETER in sources else Role.BUFFER
        first = call.given(0)
        alias = first is not None and first.tensor is not None and prod(first.shape) == prod(outs[0].shape)
        for i, value in enumerate(outs):
            if alias and i == 0 and first is not None and first.tensor is not None:
                base = self.tensors[first.tensor]
                value.tensor = self._add(value, base.role, base.name, base.storage)
            else:
                self.declare(value, role, call.node.output[i] if i < len(call.node.output) else "")
        return True

    def add(
        self,
        call: Call,
        kind: OpKind,
        ins: Sequence[Value],
        outs: Sequence[Value],
        attributes: Mapping[str, Any],
        times: DimLike = 1,
    ) -> None:
        """Record one op; *times*: how often it runs in a row."""
        read = [self.tensor(v) for v in ins]
        base = self.tensors[read[0]].storage if kind is OpKind.VIEW and read else None
        for value in outs:
            value.tensor = self._add(value, Role.ACTIVATION, "", base)
        made = [v.tensor for v in outs if v.tensor is not None]
        attributes = dict(attributes)
        if call.op == "Pow" and len(ins) > 1 and ins[1].data is not None and ins[1].data.size == 1:
            attributes["exponent"] = ins[1].data.item()
        work = self._work(call, kind, ins, read, made, attributes)
        total = self.repeats * times
        if total != 1:
            attributes["repeat"] = total
            work = Work(
                *(
                    d * total
                    for d in (
                        work.matrix_flops,
                        work.vector_flops,
                        work.special_flops,
                        work.bytes_read,
                        work.bytes_written,
                    )
                )
            )
        self.ops.append(Op(kind, call.name, tuple(read), tuple(made), attributes, module_of(call), "forward", work))

    def _work(
        self,
        call: Call,
        kind: OpKind,
        ins: Sequence[Value],
        read: Sequence[int],
        made: Sequence[int],
        a: Mapping[str, Any],
    ) -> Work:
        sources, results = [self.tensors[t] for t in read], [self.tensors[t] for t in made]
        touched = [results[0].bytes] if call.op == "Slice" and results else None
        work = op_work(kind, operators.function_of(call), a, sources, results, touched)
        exact = convolution_flops(call) if kind is OpKind.CONVOLUTION else None
        return work if exact is None else replace(work, matrix_flops=exact)

    def _recurrent(self, call: Call, outs: Sequence[Value]) -> None:
        """LSTM, GRU, RNN: the input projection of every step at once, then step by step the recurrent one and gates."""
        x, w, r = (call.value(i) for i in range(3))
        gates = GATES[call.op]
        shape = (
            outs[0].shape
            if not call.attr("layout", 0)
            else (outs[0].shape[1], outs[0].shape[2], outs[0].shape[0], outs[0].shape[3])
        )
        steps, directions, batch, hidden = shape
        wide = gates * hidden
        projected = Value((directions, steps, batch, wide), x.dtype)
        state = Value((directions, batch, wide), x.dtype)
        geometry = {"b": directions, "m": steps * batch, "n": wide, "k": x.shape[2], "bias": call.given(3) is not None}
        biases = [b for b in (call.given(3),) if b is not None]
        self.add(call, OpKind.MATMUL, [x, w, *biases], [projected], geometry)
        step = {"b": directions, "m": batch, "n": wide, "k": hidden, "bias": False}
        starts = [v for v in (call.given(5), call.given(6)) if v is not None]
        self.add(call, OpKind.MATMUL, [*starts, r], [state], step, steps)
        self.add(call, OpKind.ELEMENTWISE, [projected, state], outs, {"hidden": hidden})

    def _packed_attention(self, call: Call, outs: Sequence[Value]) -> None:
        """com.microsoft Attention: one projection to queries, keys and values, then attention over them."""
        x, weight, bias = call.value(0), call.value(1), call.given(2)
        shape: Shape = (*x.shape[:-1], weight.shape[1])
        packed = Value(shape, outs[0].dtype)
        geometry = {"b": 1, "m": prod(shape[:-1]), "n": shape[-1], "k": x.shape[-1], "bias": bias is not None}
        self.add(call, OpKind.MATMUL, [x, weight, *([bias] if bias else [])], [packed], geometry)
        rest = [v for v in call.ins[3:] if v is not None and v.shape]
        rule = operators.rule_of(call)
        self.add(call, OpKind.ATTENTION, [packed, *rest], outs, rule.geometry(call) if rule.geometry else {})


def module_of(call: Call) -> str:
    """Where in the model *call* stands: ``/encoder/layer.0/MatMul`` → ``encoder.layer.0``, under the scope's path."""
    inside = module_path(call.node)
    return ".".join(p for p in (call.scope.module, inside) if p)


def module_path(node: NodeProto) -> str:
    """The module path in a node's name or, from torch's exporter, in its metadata."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", entry.value)
            return _clean(scopes[-2]) if len(scopes) > 1 else ""
    parts = [p for p in node.name.split("/") if p]
    return ".".join(filter(None, map(_clean, parts[:-1])))[:500] if "/" in node.name else ""


def _clean(text: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", text.strip(". "))[:200]


def live(ops: Sequence[Op], wanted: set[int]) -> Iterator[Op]:
    """The ops on which *wanted* tensors depend, last first."""
    for op in reversed(ops):
        if wanted.intersection(op.outputs):
            wanted.update(op.inputs)
            yield op
