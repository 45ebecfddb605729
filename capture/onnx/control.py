"""Control flow and what else is no operator: constants, If, Loop, Scan, functions, sequences, optionals.

If: the branch its condition takes, where that follows from sizes; where data decide, the branch with more work if
both give the same sizes (with a note), else refused. Loop and Scan: unrolled up to `UNROLLED` trips; longer ones and
those over an open size run their body once with the attribute ``repeat`` and that many times the work, for which its
carried sizes must not grow. A Loop whose condition stops it early counts as if it ran to its trip count (with a note).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from onnx import FunctionProto, GraphProto

from foretrace.ir import Dim, DimLike, ForetraceError, Shape

from .call import Call
from .values import OpenSizeError, Value, known

UNROLLED: Final = 64
MAX_TRIPS: Final = 1024  # of a loop that only its condition ends
Runner = Callable[[Call], list[Value]]


def special(call: Call) -> Runner | None:
    """What runs *call* if it is no ordinary operator."""
    if (call.node.domain, call.op) in call.scope.functions:
        return _function
    if call.domain == "":
        if any(v is not None and v.items is not None for v in call.ins) and call.op == "Identity":
            return _pass_on
        return _SPECIAL.get(call.op)
    return None


def _constant(call: Call) -> list[Value]:
    name = call.node.output[0]
    if call.has("value"):
        tensor = next(a.t for a in call.node.attribute if a.name == "value")
        return [call.scope.weight(tensor, name)] if not call.node.attribute[0].ref_attr_name else [call.attr("value")]
    for attribute, dtype in (
        ("value_int", "int64"),
        ("value_ints", "int64"),
        ("value_float", "float32"),
        ("value_floats", "float32"),
    ):
        if call.has(attribute):
            return [known(call.attr(attribute), dtype)]
    if call.has("value_string") or call.has("value_strings"):
        return [Value((), known(0, "uint64").dtype, constant=True)]
    raise call.fail("a sparse or empty constant is not read")


def _pass_on(call: Call) -> list[Value]:
    found = call.given(0)
    return [found] if found is not None else []


def _function(call: Call) -> list[Value]:
    """A function of the model's own: its body, under the path of the node that calls it."""
    function: FunctionProto = call.scope.functions[call.node.domain, call.op]
    from .record import module_of

    arguments = {a.name: a for a in function.attribute_proto} | {a.name: a for a in call.node.attribute}
    module = module_of(call)
    scope = call.scope.apart(
        module, arguments, {o.domain: o.version for o in function.opset_import} or call.scope.opsets
    )
    for name, value in zip(function.input, call.ins, strict=False):
        if value is not None:
            scope.values[name] = value
    scope.absent = set(function.input) - scope.values.keys()
    scope.run(function.node, function.output)
    return [scope.result(name) for name in function.output]


def _if(call: Call) -> list[Value]:
    branches: list[GraphProto] = [call.attr("then_branch"), call.attr("else_branch")]
    condition = call.value(0)
    if condition.data is not None and condition.data.size == 1 and not isinstance(condition.data.item(), Dim):
        return _branch(call, branches[0 if condition.data.item() else 1])
    if symbols := call.scope.symbols_behind(condition):
        raise OpenSizeError(f"{call.where}: which branch runs depends on open sizes", symbols)
    recorder = call.scope.recorder
    before = len(recorder.ops)
    runs = []
    for graph in branches:
        results = _branch(call, graph)
        runs.append((results, recorder.ops[before:]))
        del recorder.ops[before:]
    (yes, yes_ops), (no, no_ops) = runs
    if [(v.shape, v.dtype) for v in yes] != [(v.shape, v.dtype) for v in no]:
        raise call.fail(
            "which branch runs depends on data, and the branches give different sizes; fold the condition into the "
            "file, or, if it is an integer input, give its value with --dim NAME=VALUE"
        )
    larger = _matrix_work(call, yes_ops) >= _matrix_work(call, no_ops)
    recorder.ops += yes_ops if larger else no_ops
    if yes_ops or no_ops:
        recorder.notes.append(f"{call.where}: data decide which branch runs; the one with more work is counted")
    return yes if larger else no


def _matrix_work(call: Call, ops: Sequence[Any]) -> tuple[float, float]:
    from foretrace.ir import evaluate_dim

    at = call.scope.recorder.defaults()
    return tuple(float(sum(evaluate_dim(getattr(o.work, n), at) for o in ops)) for n in ("matrix_flops", "bytes"))  # type: ignore[return-value]


def _branch(call: Call, graph: GraphProto) -> list[Value]:
    from .record import module_of

    return call.scope.inner(module_of(call)).run_graph(graph, [])


def _loop(call: Call) -> list[Value]:
    from .record import module_of

    body: GraphProto = call.attr("body")
    limit, condition = call.given(0), call.given(1)
    carried = [v for v in call.ins[2:] if v is not None]
    if len(body.input) != len(carried) + 2:
        raise call.fail(f"its body takes {len(body.input) - 2} carried values, it is given {len(carried)}")
    trips: DimLike | None = _trips(call, limit)
    module = module_of(call) or call.scope.module
    truth = condition if condition is not None else known(True, "bool")

    def run(i: Value, place: str, state: list[Value]) -> list[Value]:
        return call.scope.inner(place).run_graph(body, [i, truth, *state])

    if condition is not None and condition.data is not None and not condition.data.item():
        trips = 0
    count = len(body.output) - 1 - len(carried)
    if trips is None or (isinstance(trips, int) and trips <= UNROLLED):
        state, scanned, trips = _unrolled(call, trips, run, carried, count, module)
        if not trips:
            return [*carried, *(_empty(call, o, len(carried)) for o in range(count))]
        return [*state, *(_stacked(call, trips, kept) for kept in scanned)]
    results = _repeated(call, trips, lambda state: run(_position(), module, state), carried, slice(1, 1 + len(carried)))
    outs = results[1 : 1 + len(carried)]
    return [*outs, *(_stacked(call, trips, [v]) for v in results[1 + len(carried) :])]


def _unrolled(
    call: Call,
    trips: int | None,
    run: Callable[[Value, str, list[Value]], list[Value]],
    state: list[Value],
    scanned: int,
    module: str,
) -> tuple[list[Value], list[list[Value]], int]:
    """Trip after trip, until the last or until the condition is known to end it; without a *trips*, it has to be."""
    kept: list[list[Value]] = [[] for _ in range(scanned)]
    for n in range(MAX_TRIPS if trips is None else trips):
        results = run(known(n), f"{module}.{n}", state)
        state = results[1 : 1 + len(state)]
        for values, v in zip(kept, results[1 + len(state) :], strict=True):
            values.append(v)
        again = results[0]
        if again.data is not None and not again.data.item():
            return state, kept, n + 1
        if again.data is None and trips is None:
            if symbols := call.scope.symbols_behind(again):
                raise OpenSizeError(f"{call.where}: how often it runs depends on open sizes", symbols)
            raise call.fail(
                "how often it runs depends on data; give the trip count as a constant in the file, or, if it is an "
                "integer input, with --dim NAME=VALUE"
            )
        if again.data is None and n == 0:
            call.scope.recorder.notes.append(f"{call.where}: data may stop it early; counted to its last trip")
    if trips is None:
        raise call.fail(f"runs more than {MAX_TRIPS} times and carries values that change")
    return state, kept, trips


def _trips(call: Call, limit: Value | None) -> DimLike | None:
    if limit is None:
        return None
    if limit.data is None:
        if symbols := call.scope.symbols_behind(limit):
            raise OpenSizeError(f"{call.where}: how often it runs depends on open sizes", symbols)
        return None
    trips: Any = limit.data.item()
    if isinstance(trips, Dim):
        return trips
    if not 0 <= trips < 1 << 30:
        return None if trips > 0 else 0
    return operator.index(trips)


def _position() -> Value:
    return Value((), known(0).dtype, source="the trip")


def _repeated(
    call: Call, trips: DimLike, run: Callable[[list[Value]], list[Value]], state: list[Value], carried: slice
) -> list[Value]:
    """The body once with *trips* times the work; what it carries must keep its sizes."""
    recorder = call.scope.recorder
    unknown = [Value(v.shape, v.dtype, source=v.source, tensor=v.tensor, items=v.items) for v in state]
    for v, before in zip(unknown, state, strict=True):
        v.tensor = recorder.tensor(before) if before.items is None else None
    outer, recorder.repeats = recorder.repeats, recorder.repeats * trips
    try:
        results = run(unknown)
    finally:
        recorder.repeats = outer
    recorder.roots.update(v.tensor for v in results[carried] if v.tensor is not None)  # the next trip reads them
    for before, after in zip(state, results[carried], strict=True):
        if before.items is not None or after.items is not None or before.shape != after.shape:
            raise call.fail(
                f"runs {trips} times and carries a value that grows from {list(before.shape)} to {list(after.shape)}: "
                f"more than {UNROLLED} trips are only read where the sizes stay"
            )
    return results


def _stacked(call: Call, trips: DimLike, values: Sequence[Value]) -> Value:
    """What every trip adds one of: as many along a new first dim."""
    out = Value((trips, *values[0].shape), values[0].dtype)
    from foretrace.ir import OpKind

    call.scope.recorder.add(call, OpKind.COPY, values, [out], {})
    return out


def _empty(call: Call, i: int, carried: int) -> Value:
    stated = call.scope.stated(call.node.output[carried + i])
    if stated is None:
        raise call.fail("never runs, and the shape of what it gives is not stated")
    return Value((0, *stated[0][1:]), stated[1])


def _scan(call: Call) -> list[Value]:
    from .record import module_of

    body: GraphProto = call.attr("body")
    count = call.attr("num_scan_inputs")
    ins = [call.value(i) for i in range(len(call.ins))]
    if call.scope.opsets.get("", 9) < 9 or not 0 < count <= len(ins) or len(body.input) != len(ins):
        raise call.fail("its body does not take what it is given")
    state, scanned = ins[: len(ins) - count], ins[len(ins) - count :]
    axes = call.attr("scan_input_axes", [0] * count)
    trips: DimLike = scanned[0].shape[call.axis(axes[0], scanned[0].rank)]
    slices = []
    for v, axis in zip(scanned, axes, strict=True):
        at = call.axis(axis, v.rank)
        trips = call.equal(trips, v.shape[at])
        shape: Shape = (*v.shape[:at], *v.shape[at + 1 :])
        slices.append(Value(shape, v.dtype, source=v.source, tensor=call.scope.recorder.tensor(v)))

    def run(carried: list[Value]) -> list[Value]:
        return call.scope.inner(module_of(call)).run_graph(body, [*carried, *slices])

    results = _repeated(call, trips, run, state, slice(0, len(state)))
    return [*results[: len(state)], *(_stacked(call, trips, [v]) for v in results[len(state) :])]


def _sequence(call: Call) -> list[Value]:
    return [Value((), known(0).dtype, items=[v for v in call.ins if v is not None])]


def _items(call: Call) -> list[Value]:
    found = call.given(0)
    if found is None or found.items is None:
        raise call.fail("input 0 is no sequence")
    return found.items


def _place(call: Call, i: int, count: int) -> int:
    at = int(call.ints("position", i, [-1])[0])
    if not -count <= at <= count:
        raise call.fail(f"position {at} in a sequence of {count}")
    return at


def _insert(call: Call) -> list[Value]:
    items = list(_items(call))
    at = _place(call, 2, len(items)) if call.given(2) else len(items)
    items.insert(at, call.value(1))
    return [Value((), known(0).dtype, items=items)]


def _erase(call: Call) -> list[Value]:
    items = list(_items(call))
    at = _place(call, 1, len(items))
    return [Value((), known(0).dtype, items=[v for i, v in enumerate(items) if i != at % len(items)])]


def _at(call: Call) -> list[Value]:
    items = _items(call)
    at = _place(call, 1, len(items))
    if not -len(items) <= at < len(items):
        raise call.fail(f"position {at} in a sequence of {len(items)}")
    return [items[at]]


def _length(call: Call) -> list[Value]:
    return [known(np.array(len(_items(call)), dtype=object))]


def _joined(call: Call) -> list[Value]:
    """ConcatFromSequence: as Concat, or stacked along a new axis."""
    items = _items(call)
    if not items:
        raise call.fail("joins an empty sequence")
    axis, new = call.attr("axis"), call.attr("new_axis", 0)
    first = items[0]
    at = call.axis(axis, first.rank + new)
    if new:
        shape: Shape = (*first.shape[:at], len(items), *first.shape[at:])
    else:
        whole: DimLike = 0
        for v in items:
            whole = whole + v.shape[at]
        shape = (*first.shape[:at], whole, *first.shape[at + 1 :])
    out = Value(shape, first.dtype)
    from foretrace.ir import OpKind

    call.scope.recorder.add(call, OpKind.COPY, items, [out], {})
    return [out]


def _split_to_sequence(call: Call) -> list[Value]:
    x = call.value(0)
    axis = call.axis(call.attr("axis", 0), x.rank)
    whole = x.shape[axis]
    keep = call.attr("keepdims", 1)
    if call.given(1) is None:
        parts: list[DimLike] = [1] * _count(call, whole)
    elif call.value(1).shape:
        parts, keep = call.sizes(1), 1
    else:
        size, keep = call.ints("split", 1)[0], 1
        total = _count(call, whole)
        parts = [*[size] * (total // size), *([total % size] if total % size else [])]
    shapes: list[Shape] = [(*x.shape[:axis], *((p,) if keep else ()), *x.shape[axis + 1 :]) for p in parts]
    outs = [Value(s, x.dtype) for s in shapes]
    from foretrace.ir import OpKind

    call.scope.recorder.add(call, OpKind.COPY, [x], outs, {})
    return [Value((), x.dtype, items=outs)]


def _count(call: Call, size: DimLike) -> int:
    if isinstance(size, Dim):
        raise OpenSizeError(f"{call.where}: how many parts it makes", size.symbols)
    if size > 4096:
        raise call.fail(f"makes {size} parts")
    return size


def _refused(call: Call) -> list[Value]:
    raise ForetraceError(f"{call.where}: optional values and maps over sequences are not read")


_SPECIAL: Final[dict[str, Runner]] = {
    "Constant": _constant,
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceConstruct": _sequence,
    "SequenceEmpty": _sequence,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _joined,
    "SplitToSequence": _split_to_sequence,
    **dict.fromkeys(("SequenceMap", "Optional", "OptionalGetElement", "OptionalHasElement"), _refused),
}
