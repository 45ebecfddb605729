"""`capture_onnx`: an ``.onnx`` file → a verified Graph, as many of its sizes open as it allows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto

from foretrace.ir import (
    Dim,
    DimLike,
    DType,
    ForetraceError,
    Graph,
    GraphError,
    Op,
    Role,
    Symbol,
    Tensor,
    UnknownNameError,
    symbol,
    verify,
)

from .bounds import MAX_OPEN, symbols_of
from .reader import opset_of, producer_of, read_model, reader_version
from .record import Recorder, live
from .scope import Scope, substitute
from .values import EqualSizesError, OpenSizeError, Value, declared_shape, dtype_of, symbol_name

IMAGE_SIZE: Final = 224
SIGNAL: Final = 16_000  # a second of speech
LENGTH: Final = 128
_CACHE_IN: Final = re.compile(r"past|cache", re.IGNORECASE)
_CACHE_OUT: Final = re.compile(r"present", re.IGNORECASE)


def capture_onnx(
    path: str | Path,
    *,
    dims: Mapping[str, int] | None = None,
    phase: str = "forward",
    dtype: str | None = None,
    attention: str = "sdpa",
    optimizer: str | None = None,
) -> Graph:
    """Capture the model in the file *path*; no weight is read and no file of external data is opened.

    The file's own symbolic dims stay open and take their defaults from *dims*; an unnamed dim is called INPUT_AXIS,
    and an integer input that holds one number can be given as if it were a dim. Where a shape or a branch cannot be
    known while a size is open, that size is fixed to its value in *dims* (metadata ``fixed.NAME`` and a note say so).
    Raises `ForetraceError` where it is not given, naming it, and for a file or an operator that cannot be read.
    """
    path = Path(path)
    _check_flags(phase=phase, dtype=dtype, attention=attention, optimizer=optimizer)
    given = {symbol_name(n): v for n, v in (dims or {}).items()}
    model = read_model(path)
    fixed: dict[str, DimLike] = {}
    notes: list[str] = []
    ask: list[OpenSizeError] = []  # what a first error asks for, and what would be asked for next
    while True:
        capture = _Capture(path, model, given, fixed)
        try:
            graph = capture.graph(notes)
        except EqualSizesError as e:
            fixed = _with(fixed, {e.symbol: e.value})
            wanted = given.get(e.symbol)
            if wanted is not None and isinstance(e.value, int) and wanted != e.value:
                raise ForetraceError(f"{path}: --dim {e.symbol}={wanted}: {e.where} needs {e.value}") from None
            notes.append(f"{e.symbol} is {e.value}: {e.where} needs them equal")
            continue
        except OpenSizeError as e:
            if e.symbols - given.keys():
                ask.append(e)
            else:
                notes.append(f"fixed {', '.join(f'{n} = {given[n]}' for n in sorted(e.symbols))}: {e}")
            fixed = _with(fixed, {n: given.get(n, capture.symbols[n].default) for n in e.symbols})
            continue
        except ForetraceError as e:
            if not ask:
                raise type(e)(f"{path}: {e}") if type(e) in (ForetraceError, GraphError) else e from None
        if ask:
            missing = sorted(frozenset[str]().union(*(e.symbols for e in ask)) - given.keys())
            fix = " ".join(f"--dim {n}=VALUE" for n in missing)
            raise ForetraceError(f"{path}: {ask[0]}; fix it: {fix}")
        return graph


def _check_flags(**given: str | None) -> None:
    for flag, value in given.items():
        if value not in {"phase": ("forward",), "attention": ("sdpa",)}.get(flag, (None,)):
            raise ForetraceError(
                f"--{flag} {value}: an ONNX file is one forward pass, with its own formats and operators"
            )


def _default(name: str, axis: int, rank: int, dtype: DType) -> int:
    """What an open size is unless the user says: one for a batch; by rank that of a picture, a signal, a sequence."""
    if axis == 0 or "batch" in name.lower():
        return 1
    return IMAGE_SIZE if rank == 4 and axis > 1 else SIGNAL if rank == 2 and dtype.is_float else LENGTH


def _with(fixed: Mapping[str, DimLike], more: Mapping[str, DimLike]) -> dict[str, DimLike]:
    return {n: substitute(d, more) for n, d in fixed.items()} | dict(more)


class _Capture:
    """One run over the model with some sizes fixed."""

    def __init__(self, path: Path, model: ModelProto, given: Mapping[str, int], fixed: Mapping[str, DimLike]) -> None:
        self.path, self.model, self.given, self.fixed = path, model, given, fixed
        self.proto: GraphProto = model.graph
        self.symbols: dict[str, Symbol] = {}

    def graph(self, notes: Sequence[str]) -> Graph:
        """The Graph; raises `EqualSizesError` or `OpenSizeError` where other sizes have to be fixed."""
        weights = {t.name for t in self.proto.initializer}
        inputs = [(i.name, self._declared(i)) for i in self.proto.input if i.name not in weights]
        recorder = Recorder(self.symbols, self.given, _statistics(self.proto))
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in self.model.opset_import}
        functions = {(f.domain, f.name): f for f in self.model.functions}
        scope = Scope(recorder, functions, opsets)
        for name, value in inputs:
            if name in scope.values:
                raise GraphError(f"two inputs are called {name!r}")
            role = Role.KV_CACHE if _CACHE_IN.search(name) and value.rank >= 3 else Role.INPUT
            recorder.declare(value, role, name)
            scope.values[name] = value
        scope.load(self.proto)
        results = [o.name for o in self.proto.output]
        scope.run(self.proto.node, results)
        return self._assemble(recorder, [scope.result(name) for name in results], notes)

    def _declared(self, info: ValueInfoProto) -> Value:
        """An input; one that holds just one integer or truth value is known as a symbol."""
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise ForetraceError(
                f"input {info.name!r} has no shape in the file, or is no tensor: write its shape into it"
            )
        dtype = dtype_of(kind.elem_type, f"input {info.name!r}")
        shape = declared_shape(kind, info.name)
        for axis, d in enumerate(shape):
            for name in sorted(symbols_of(d)):
                self._open(name, _default(name, axis, len(shape), dtype), f"dim {axis} of the input {info.name}")
        value = Value(tuple(substitute(d, self.fixed) for d in shape), dtype, source=info.name)
        if value.shape in ((), (1,)) and dtype.sort in ("int", "uint", "bool"):
            name = symbol_name(info.name)
            self._open(name, 1, f"the number in the input {info.name}", least=0)
            number = self.fixed.get(name, symbol(name))
            value.data = np.full(value.shape, number, object)
            value.depends = symbols_of(number)
        return value

    def _open(self, name: str, default: int, meaning: str, least: int = 1) -> None:
        default = self.given.get(name, default)
        if not least <= default <= MAX_OPEN:
            raise ForetraceError(f"--dim {name}={default}: expected a size of at least {least}")
        self.symbols.setdefault(name, Symbol(name, default, min(1, default), MAX_OPEN, meaning))

    def _assemble(self, recorder: Recorder, results: Sequence[Value], notes: Sequence[str]) -> Graph:
        """The ops that the results depend on, the tensors these touch, the symbols still open."""
        tensors = recorder.tensors
        named = {v.tensor: o.name for v, o in zip(results, self.proto.output, strict=True) if v.tensor is not None}
        ops = list(live(recorder.ops, recorder.roots | set(named)))[::-1]
        made = {t for op in ops for t in op.outputs}
        for t, name in named.items():
            if t in made:
                role = Role.KV_CACHE if _CACHE_OUT.search(name) else Role.OUTPUT
                tensors[t] = replace(tensors[t], name=name, role=role)
        touched = {t for op in ops for t in (*op.inputs, *op.outputs)}
        touched |= {tensors[t].storage for t in touched}
        kept = [i for i, t in enumerate(tensors) if i in touched or t.role in (Role.INPUT, Role.KV_CACHE)]
        place = _places(tensors, kept)
        final = [replace(tensors[i], storage=place[tensors[i].storage]) for i in kept]
        final_ops = [_moved(op, place) for op in ops]
        used = _used(final, final_ops)
        open_ = {n: s for n, s in recorder.symbols.items() if n in used}
        self._check_names({*open_, *self.fixed})
        metadata = self._metadata(final) | {
            f"note.{i}": n for i, n in enumerate([*notes, *dict.fromkeys(recorder.notes)])
        }
        name = self.path.stem
        return verify(Graph(name, "forward", open_, tuple(final), tuple(final_ops), metadata))

    def _check_names(self, symbols: set[str]) -> None:
        for name in self.given:
            if name not in symbols:
                hint = f"the file leaves open: {', '.join(sorted(symbols - self.fixed.keys())) or 'nothing'}"
                raise UnknownNameError("symbol", name, symbols, hint)

    def _metadata(self, tensors: Sequence[Tensor]) -> dict[str, str]:
        formats = Counter(t.dtype.name for t in tensors if t.role is Role.PARAMETER)
        return {
            "source": self.path.name,
            "recorder": "onnx",
            "onnx": reader_version(),
            "opset": str(opset_of(self.model)),
            "producer": producer_of(self.model),
            **({"dtype": formats.most_common(1)[0][0]} if formats else {}),
            **{f"fixed.{n}": str(v) for n, v in self.fixed.items()},
        }


def _statistics(graph: GraphProto) -> frozenset[str]:
    """Weights that are running means and variances: buffers, as in the frameworks they come from."""
    return frozenset(name for n in graph.node if n.op_type == "BatchNormalization" for name in n.input[3:5])


def _places(tensors: Sequence[Tensor], kept: list[int]) -> dict[int, int]:
    """Old tensor id → new; a kept tensor whose storage's owner is not kept owns it now."""
    place = {i: n for n, i in enumerate(kept)}
    for i in kept:
        place.setdefault(tensors[i].storage, place[i])
    return place


def _moved(op: Op, place: Mapping[int, int]) -> Op:
    return replace(op, inputs=tuple(place[t] for t in op.inputs), outputs=tuple(place[t] for t in op.outputs))


def _used(tensors: Sequence[Tensor], ops: Sequence[Op]) -> set[str]:
    """Symbols that any size depends on."""
    found = {s for t in tensors for d in t.shape if isinstance(d, Dim) for s in d.symbols}
    for op in ops:
        values = [op.work.matrix_flops, op.work.bytes_read, op.work.bytes_written, *op.attributes.values()]
        found |= {s for d in values if isinstance(d, Dim) for s in d.symbols}
    return found
