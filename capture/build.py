"""Recordings → Graph: the runs of one model at several points become one graph with symbolic sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foretrace.ir import (
    DimLike,
    Graph,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    Work,
    op_work,
    parse_dtype,
    prod,
    verify,
)

from .aten import bare_name, full_name, geometry, kind_of
from .recorder import RawOp, RawTensor, Recording
from .symbolic import DimSolver, SymbolicError

Correspondence = Mapping[int, int]
"""Op id of the full recording → op id of a partial one that stands for it."""


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
    shapes = _tensor_shapes(runs, solver)
    made = {t for op in full.ops for t in op.outputs}
    tensors = tuple(_tensor(i, raw, shapes[i], i in made, full) for i, raw in enumerate(full.tensors))
    ops = []
    solved: dict[int, dict[str, Any]] = {}
    worked: dict[Any, tuple[dict[str, Any], Work]] = {}
    for i, raw_op in enumerate(full.ops):
        literals = _literals(i, raw_op, runs, solver, solved)
        ops.append(_op(raw_op, literals, full, tensors, worked))
    return verify(Graph(name, phase, dict(symbols), tensors, tuple(ops), dict(metadata)))


def correspond(full: Recording, other: Recording, keep: Sequence[int] | None = None) -> dict[int, int]:
    """Pair the ops of *full* (all, or those in *keep*) with those of *other*, in order.

    A view that only one of them takes is passed over (expanding a batch of one is no operation), and so are copies of
    integers. An optimizer's ops are left out: their sizes are the parameters', and only *full* needs to have them.
    Raises `SymbolicError` at the first other op that differs in operator, place or arity.
    """
    wanted = [i for i in keep or range(len(full.ops)) if full.ops[i].phase != "optimizer"]
    pairs: dict[int, int] = {}
    n = j = 0
    while n < len(wanted) and j < len(other.ops):
        mine, theirs = full.ops[wanted[n]], other.ops[j]
        if _same(mine, theirs):
            pairs[wanted[n]] = j
            n, j = n + 1, j + 1
        elif _may_lack(mine, full):
            n += 1
        elif _may_lack(theirs, other):
            j += 1
        else:
            raise SymbolicError(
                f"the model runs {full_name(mine.function)} in {mine.module or 'its body'} at one shape and "
                f"{full_name(theirs.function)} in {theirs.module or 'its body'} at another"
            )
    rest = [(full.ops[i], full) for i in wanted[n:]] + [(op, other) for op in other.ops[j:]]
    if not all(_may_lack(op, run) for op, run in rest):
        raise SymbolicError(f"the model runs {len(wanted)} operators at one shape and {len(other.ops)} at another")
    return pairs


def _may_lack(op: RawOp, run: Recording) -> bool:
    """Whether *op* may be there at one point and not at another: a view, or integers made contiguous."""
    if kind_of(op.function) is OpKind.VIEW:
        return True
    return op.function is torch.ops.aten.clone.default and not run.tensors[op.outputs[0]].dtype.is_floating_point


def _same(a: RawOp, b: RawOp) -> bool:
    arity = len(a.inputs) == len(b.inputs) and len(a.outputs) == len(b.outputs)
    return arity and a.function is b.function and a.module == b.module and a.phase == b.phase


def _tensor_shapes(runs: Sequence[tuple[Recording, Correspondence]], solver: DimSolver) -> list[tuple[DimLike, ...]]:
    full = runs[0][0]
    touched = {t for op in full.ops if op.phase != "optimizer" for t in (*op.inputs, *op.outputs)}
    seen: list[list[tuple[int, ...] | None]] = [[t.shape] for t in full.tensors]
    for other, pairs in runs[1:]:
        at: dict[int, int] = {}
        for i, op in enumerate(full.ops):
            if (j := pairs.get(i)) is None:
                continue
            twin = other.ops[j]
            at.update(zip(op.outputs, twin.outputs, strict=True))
            for mine, theirs in zip(op.inputs, twin.inputs, strict=True):
                at.setdefault(mine, theirs)
        for t, shapes in enumerate(seen):
            if t in at:
                shapes.append(other.tensors[at[t]].shape)
            else:  # a view that this run did not take; or what only an optimizer touches, the same at every point
                shapes.append(None if t in touched else full.tensors[t].shape)
    cache: dict[Any, tuple[DimLike, ...]] = {}
    return [_shape(tuple(s), solver, cache) for s in seen]


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
