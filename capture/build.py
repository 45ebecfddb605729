"""Recordings → Graph: the runs of one model at several points become one graph with symbolic sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretrace.ir import (
    Dim,
    DimLike,
    Graph,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    Work,
    dim_min,
    evaluate_dim,
    op_work,
    parse_dtype,
    prod,
    symbol,
    verify,
)

from .aten import bare_name, full_name, geometry, kind_of
from .pairing import CLONE, Correspondence
from .pairing import correspond as correspond
from .points import Point
from .recorder import RawOp, RawTensor, Recording
from .symbolic import DimSolver, SymbolicError

NOT_ALONE = dim_min(1, symbol("batch") - 1)
"""How often a copy is made that a batch of one does not need."""


def merge(
    name: str,
    phase: str,
    symbols: Mapping[str, Symbol],
    runs: Sequence[tuple[Recording, Correspondence]],
    solver: DimSolver,
    metadata: Mapping[str, str],
) -> Graph:
    """One verified Graph from *runs*: the first is the full one, each with its correspondence to the full one's ops.

    Raises `SymbolicError` where the runs differ in structure or a size fits no expression.
    """
    full = runs[0][0]
    skipped = _skipped_alone(runs, solver.points)
    shapes = _tensor_shapes(runs, solver)
    made = {t for op in full.ops for t in op.outputs}
    tensors = tuple(_tensor(i, raw, shapes[i], i in made, full) for i, raw in enumerate(full.tensors))
    ops = []
    solved: dict[int, dict[str, Any]] = {}
    worked: dict[Any, tuple[dict[str, Any], Work]] = {}
    for i, raw_op in enumerate(full.ops):
        literals = _literals(i, raw_op, runs, solver, solved)
        op = _op(raw_op, literals, full, tensors, worked)
        if raw_op.times != 1 or raw_op.pieces != 1:
            op = _in_loop(i, op, runs, solver)
        ops.append(_times(op, NOT_ALONE) if i in skipped else op)
    noted = (
        {} if not skipped else {"note.copies": f"a batch of one skips {len(skipped)} copies: they count from two on"}
    )
    return verify(Graph(name, phase, dict(symbols), tensors, tuple(ops), {**metadata, **noted}))


def agrees(
    graph: Graph, full: Recording, other: Recording, point: Point, pairs: Correspondence, keep: Sequence[int] | None
) -> bool:
    """Whether *graph*, merged from *full*, has at *point* just the copies and sizes of *other*, recorded there.

    *pairs* is what `correspond` gave for *keep*.
    """
    copies = {i for i in keep or range(len(full.ops)) if _copies_floats(full.ops[i], full)}
    if not copies <= pairs.keys() or len(copies) != sum(_copies_floats(op, other) for op in other.ops):
        return False
    sizes = {
        (id(graph.tensors[mine].shape), other.tensors[theirs].shape): graph.tensors[mine].shape
        for i, j in pairs.items()
        for mine, theirs in zip(full.ops[i].outputs, other.ops[j].outputs, strict=True)
    }
    return all(seen == tuple(evaluate_dim(d, point) for d in shape) for (_, seen), shape in sizes.items())


def mixes_sequences(graph: Graph) -> bool:
    """Whether a tensor grows with the square of the batch: in decode nothing should (RWKV's shift broadcasts wrong)."""
    counts = {t.shape: t.elements for t in graph.tensors}.values()
    return any(m.count("batch") > 1 for n in counts if isinstance(n, Dim) for m, _ in n.terms)


def _skipped_alone(runs: Sequence[tuple[Recording, Correspondence]], points: Sequence[Point]) -> frozenset[int]:
    """Copies of floats that the full recording makes and a batch of one does not.

    Raises `SymbolicError` where a copy comes and goes with anything else, or one is made for a batch of one alone.
    """
    full, found = runs[0][0], set()
    for i, op in enumerate(full.ops):
        if not _copies_floats(op, full) or all(i in pairs for _, pairs in runs[1:]):
            continue
        alone = [points[n].get("batch") == 1 for n in range(len(runs))]
        there = [n == 0 or i in pairs for n, (_, pairs) in enumerate(runs)]
        if any(a is t for a, t in zip(alone, there, strict=True)):
            raise SymbolicError(f"the model copies a tensor in {op.module or 'its body'} at some shapes only")
        found.add(i)
    for other, pairs in runs[1:]:
        paired = set(pairs.values())
        for j, op in enumerate(other.ops):
            if j not in paired and _copies_floats(op, other):
                raise SymbolicError(f"the model copies a tensor in {op.module or 'its body'} at some shapes only")
    return frozenset(found)


def _copies_floats(op: RawOp, run: Recording) -> bool:
    is_copy = op.function is CLONE and op.phase != "optimizer"
    return is_copy and run.tensors[op.outputs[0]].dtype.is_floating_point


def _in_loop(i: int, op: Op, runs: Sequence[tuple[Recording, Correspondence]], solver: DimSolver) -> Op:
    """*op*, number *i* of the full recording, as often as it runs in a loop, or reading all that the loop gave."""
    twins = [runs[0][0].ops[i], *(other.ops[pairs[i]] if i in pairs else None for other, pairs in runs[1:])]
    times = solver.solve(tuple(None if t is None else t.times for t in twins))
    pieces = solver.solve(tuple(None if t is None else t.pieces for t in twins))
    op = op if times == 1 else _times(op, times)
    return replace(op, work=replace(op.work, bytes_read=op.work.bytes_read * pieces))


def _times(op: Op, times: DimLike) -> Op:
    """*op* as done so many times in a row."""
    w = op.work
    dims = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
    return replace(op, attributes={**op.attributes, "repeat": times}, work=Work(*(d * times for d in dims)))


def _tensor_shapes(runs: Sequence[tuple[Recording, Correspondence]], solver: DimSolver) -> list[tuple[DimLike, ...]]:
    full = runs[0][0]
    touched = {t for op in full.ops if op.phase != "optimizer" for t in (*op.inputs, *op.outputs)}
    twins = [(_twins(full, other, pairs), other.tensors) for other, pairs in runs[1:]]
    found: list[tuple[DimLike, ...]] = []
    solved: dict[Any, tuple[DimLike, ...]] = {}  # instances of a layer have the same twins
    cache: dict[Any, tuple[DimLike, ...]] = {}
    for t, raw in enumerate(full.tensors):
        there = [at.get(t) for at, _ in twins]
        key = (raw.shape, t in touched, *there)
        if key not in solved:
            # no twin: a view that this run did not take; or what only an optimizer touches, the same at every point
            missing = None if t in touched else raw.shape
            seen = (missing if n is None else tensors[n].shape for n, (_, tensors) in zip(there, twins, strict=True))
            solved[key] = _shape((raw.shape, *seen), solver, cache)
        found.append(solved[key])
    return found


def _twins(full: Recording, other: Recording, pairs: Correspondence) -> dict[int, int]:
    """The tensors of *full* that paired ops touch → those of *other*."""
    at: dict[int, int] = {}
    for i, op in enumerate(full.ops):
        if (j := pairs.get(i)) is None:
            continue
        twin = other.ops[j]
        at.update(zip(op.outputs, twin.outputs, strict=True))
        for mine, theirs in zip(op.inputs, twin.inputs, strict=True):
            at.setdefault(mine, theirs)
    return at


def _shape(seen: tuple[tuple[int, ...] | None, ...], solver: DimSolver, cache: dict[Any, Any]) -> tuple[DimLike, ...]:
    if seen not in cache:
        shapes = [s for s in seen if s is not None]
        if any(len(s) != len(shapes[0]) for s in shapes):
            raise SymbolicError(f"a tensor has another rank at another point: {shapes}")
        ranks = range(len(shapes[0]))
        cache[seen] = tuple(solver.solve(tuple(None if s is None else s[i] for s in seen)) for i in ranks)
    found: tuple[DimLike, ...] = cache[seen]
    return found


def _literals(
    i: int, op: RawOp, runs: Sequence[tuple[Recording, Correspondence]], solver: DimSolver, solved: dict[int, Any]
) -> dict[str, Any]:
    if not op.literals or kind_of(op.function) is OpKind.VIEW:  # a view's arguments are its result's shape
        return {}
    if op.phase == "optimizer":
        return {name: _plain(value) for name, value in op.literals.items()}
    twins = [op] + [other.ops[pairs[i]] for other, pairs in runs[1:] if i in pairs]
    key = id(twins[1]) if len(twins) > 1 else id(op)
    if key in solved:  # the representative layer has been solved, this is another instance of it
        return dict(solved[key])
    if any(t.literals.keys() != op.literals.keys() for t in twins):
        raise SymbolicError(f"{full_name(op.function)} in {op.module} takes other arguments at another point")
    solved[key] = {name: solver.solve_value([_plain(t.literals[name]) for t in twins]) for name in op.literals}
    return dict(solved[key])


def _plain(value: Any) -> Any:
    """A literal argument as an attribute can hold it."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")


def _tensor(i: int, raw: RawTensor, shape: tuple[DimLike, ...], made: bool, full: Recording) -> Tensor:
    if made:
        result = full.results.get(i)
        role = Role(raw.role) if result is None else Role.KV_CACHE if result.startswith("kv_cache") else Role.OUTPUT
        name = raw.name if result is None else result
    else:
        role, name = Role(raw.role), raw.name
    return Tensor(name, shape, parse_dtype(str(raw.dtype)), role, raw.storage)


def _op(
    raw: RawOp, literals: Mapping[str, Any], full: Recording, tensors: Sequence[Tensor], worked: dict[Any, Any]
) -> Op:
    """The op of the Graph; its attributes and work are found once for all that are equal (*worked*)."""
    kind = kind_of(raw.function)
    touched = (*raw.inputs, *raw.outputs)  # equal shapes are one object
    layout = tuple([(id(tensors[t].shape), tensors[t].dtype.name, full.tensors[t].stride) for t in touched])
    key = (raw.function, len(raw.inputs), layout, repr(literals) if literals else "")
    if key not in worked:
        ins, outs = [tensors[t] for t in raw.inputs], [tensors[t] for t in raw.outputs]
        attributes = {**literals, **geometry(raw.function, kind, ins, outs, literals)}
        read = [_touched(tensors[t], full.tensors[t]) for t in raw.inputs]
        worked[key] = attributes, op_work(kind, bare_name(raw.function), attributes, ins, outs, read)
    attributes, work = worked[key]
    name = full_name(raw.function)
    return Op(kind, name, tuple(raw.inputs), tuple(raw.outputs), attributes, raw.module, raw.phase, work)


def _touched(tensor: Tensor, raw: RawTensor) -> DimLike:
    """Bytes a kernel must fetch of an input: an expanded dimension (stride 0) is the same memory again."""
    if 0 not in raw.stride:
        return tensor.bytes
    kept = [d for d, stride in zip(tensor.shape, raw.stride, strict=True) if stride]
    return prod(kept) * tensor.dtype.bits // 8
