"""The sizes of what an ONNX operator gives, with open sizes in them: one function for each family of operators.

Each takes the `Call` and gives the shape and format of every output. Families that only sort or rename dims are
exact; windows (convolutions, pools) and reshapes divide, and stay expressions where the division does not come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from foretrace.ir import DTYPES, Dim, DimLike, DType, Shape, prod

from .bounds import Unknown, compare, larger, smaller, symbols_of
from .call import Call, Sized
from .values import OpenSizeError

INT64 = DTYPES["int64"]


def same(call: Call) -> list[Sized]:
    """Every output like the first input."""
    x = call.value(0)
    return [(x.shape, x.dtype)] * len(call.node.output)


def broadcast(call: Call) -> list[Sized]:
    """All inputs against each other."""
    values = [v for v in call.ins if v is not None]
    dtype = values[-1].dtype if call.op == "Where" else values[0].dtype
    return [(call.broadcast(*(v.shape for v in values)), dtype)]


def norm(call: Call) -> list[Sized]:
    """Like the input; a second and third output are statistics, a last one the sum of a skip connection."""
    x = call.value(0)
    if "Skip" in call.op:
        return [(x.shape, x.dtype), ((), x.dtype), ((), x.dtype), (x.shape, x.dtype)][: len(call.node.output)]
    axis = call.axis(call.attr("axis", -1), x.rank)
    stats = (*x.shape[:axis], *(1 for _ in x.shape[axis:]))
    return [(x.shape, x.dtype), (stats, x.dtype), (stats, x.dtype)][: len(call.node.output)]


def divided(a: DimLike, b: DimLike) -> DimLike:
    """``a / b`` for an *a* that is a multiple of *b*: exact also where *b* is a sum."""
    if isinstance(a, Dim) and isinstance(b, Dim):
        of_a, of_b = (reduce(math.gcd, (c for _, c in d.terms)) for d in (a, b))
        if a // of_a == b // of_b and of_a % of_b == 0:
            return of_a // of_b
    return a // b


def reshape(call: Call) -> list[Sized]:
    """Reshape: 0 keeps a dim, -1 is what is left over."""
    x = call.value(0)
    target = call.attr("shape") if call.has("shape") else call.sizes(1)
    if not call.attr("allowzero", 0):
        if any(d == 0 and i >= x.rank for i, d in enumerate(target)):
            raise call.fail(f"keeps a dim that its input of rank {x.rank} does not have")
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    left, given = list(x.shape), [d for d in target if d != -1]
    if target.count(-1) > 1 or any(isinstance(d, int) and d < 0 for d in given):
        raise call.fail(f"cannot reshape to {target}")
    for d in list(given):
        if d in left:
            left.remove(d)
            given.remove(d)
    whole, part = prod(left), prod(given)
    if -1 in target:
        if part == 0 or (isinstance(whole, int) and isinstance(part, int) and whole % part):
            raise call.fail(f"cannot reshape {list(x.shape)} to {target}")
        rest = divided(whole, part)
        return [(tuple(rest if d == -1 else d for d in target), x.dtype)]
    if whole != part:
        call.equal(whole, part)
    return [(tuple(target), x.dtype)]


def flatten(call: Call) -> list[Sized]:
    """Two dims: before the axis, and from it."""
    x = call.value(0)
    axis = call.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    return [((prod(x.shape[:axis]), prod(x.shape[axis:])), x.dtype)]


def squeeze(call: Call) -> list[Sized]:
    """Without the dims of one."""
    x = call.value(0)
    axes = {call.axis(a, x.rank) for a in call.ints("axes", 1, [i for i, d in enumerate(x.shape) if d == 1])}
    for a in axes:
        call.equal(x.shape[a], 1)
    return [(tuple(d for i, d in enumerate(x.shape) if i not in axes), x.dtype)]


def unsqueeze(call: Call) -> list[Sized]:
    """With new dims of one."""
    x = call.value(0)
    axes = call.ints("axes", 1)
    rank = x.rank + len(axes)
    places = {call.axis(a, rank) for a in axes}
    if len(places) < len(axes) or rank > 64:
        raise call.fail(f"axes {axes} repeat")
    rest = iter(x.shape)
    return [(tuple(1 if i in places else next(rest) for i in range(rank)), x.dtype)]


def transpose(call: Call) -> list[Sized]:
    """Dims in another order."""
    x = call.value(0)
    order = call.attr("perm", list(range(x.rank))[::-1])
    if sorted(order) != list(range(x.rank)):
        raise call.fail(f"perm {order} does not order the dims of a tensor of rank {x.rank}")
    return [(tuple(x.shape[i] for i in order), x.dtype)]


def expand(call: Call) -> list[Sized]:
    """Broadcast to a shape."""
    x = call.value(0)
    return [(call.broadcast(x.shape, tuple(call.sizes(1))), x.dtype)]


def tile(call: Call) -> list[Sized]:
    """Each dim several times."""
    x = call.value(0)
    return [(tuple(d * n for d, n in zip(x.shape, call.sizes(1), strict=True)), x.dtype)]


def concat(call: Call) -> list[Sized]:
    """The axis is the sum, the other dims agree."""
    values = [call.value(i) for i in range(len(call.ins))]
    first = values[0]
    axis = call.axis(call.attr("axis", 1), first.rank)
    out = list(first.shape)
    for v in values[1:]:
        if v.rank != first.rank:
            raise call.fail(f"joins tensors of rank {first.rank} and {v.rank}")
        out = [a + b if i == axis else call.equal(a, b) for i, (a, b) in enumerate(zip(out, v.shape, strict=True))]
    return [(tuple(out), first.dtype)]


def split(call: Call) -> list[Sized]:
    """Parts of the axis: as listed, else equal ones, the last the smaller."""
    x = call.value(0)
    axis, n = call.axis(call.attr("axis", 0), x.rank), len(call.node.output)
    whole = x.shape[axis]
    if call.has("split") or call.given(1) is not None:
        parts: list[DimLike] = call.attr("split") if call.has("split") else call.sizes(1)
    else:
        size = whole // n if whole % n == 0 else (whole + n - 1) // n
        parts = [size] * (n - 1) + [whole - size * (n - 1)]
    if len(parts) != n:
        raise call.fail(f"has {n} outputs and {len(parts)} parts")
    call.equal(sum(parts[1:], parts[0]), whole)
    return [((*x.shape[:axis], p, *x.shape[axis + 1 :]), x.dtype) for p in parts]


def _clamped(call: Call, end: DimLike, size: DimLike, least: DimLike, most: DimLike) -> DimLike:
    """*end* of a slice: counted from the back if negative, no further than the tensor."""
    try:
        if compare(end, 0, "<"):
            end = end + size
    except Unknown:
        raise OpenSizeError(f"{call.where}: whether {end} counts from the back", symbols_of(end)) from None
    return larger(smaller(end, most), least)


def slice_(call: Call) -> list[Sized]:
    """From start to end by a step along each axis."""
    x = call.value(0)
    listed = call.has("starts")
    starts, ends = (call.attr(n) if listed else call.sizes(i) for i, n in ((1, "starts"), (2, "ends")))
    axes, steps = call.ints("axes", 3, range(len(starts))), call.ints("steps", 4, [1] * len(starts))
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise call.fail("starts, ends, axes and steps do not match")
    out = list(x.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        at = call.axis(axis, x.rank)
        size = x.shape[at]
        if step > 0:
            first, last = (_clamped(call, v, size, 0, size) for v in (start, end))
        else:
            first = _clamped(call, start, size, 0, size - 1)
            last = -1 if isinstance(end, int) and end < -(1 << 31) else _clamped(call, end, size, -1, size - 1)
        length = last - first if step > 0 else first - last
        length = length if abs(step) == 1 else (length + abs(step) - 1) // abs(step)
        out[at] = max(length, 0) if isinstance(length, int) else length
    return [(tuple(out), x.dtype)]


def gather(call: Call) -> list[Sized]:
    """Rows of an axis: the indices' shape takes the axis' place."""
    x, index = call.value(0), call.value(1)
    axis = call.axis(call.attr("axis", 0), x.rank)
    return [((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)]


def gather_elements(call: Call) -> list[Sized]:
    """Like the indices."""
    return [(call.value(1).shape, call.value(0).dtype)]


def gather_nd(call: Call) -> list[Sized]:
    """Slices named by the last dim of the indices."""
    x, index, b = call.value(0), call.value(1), call.attr("batch_dims", 0)
    depth = index.shape[-1] if index.shape else 0
    if not isinstance(depth, int):
        raise OpenSizeError(f"{call.where}: the rank of its result", depth.symbols)
    return [((*index.shape[:-1], *x.shape[b + depth :]), x.dtype)]


def reduced(call: Call) -> list[Sized]:
    """The axes reduced, kept as dims of one or dropped."""
    x = call.value(0)
    if call.op in ("ArgMax", "ArgMin"):
        axes, dtype = {call.axis(call.attr("axis", 0), x.rank)}, INT64
    else:
        given = call.ints("axes", 1, ())
        everything = () if call.attr("noop_with_empty_axes", 0) else range(x.rank)
        axes, dtype = {call.axis(a, x.rank) for a in given} or set(everything), x.dtype
    keep = call.attr("keepdims", 1)
    return [(tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes), dtype)]


def filled(call: Call) -> list[Sized]:
    """ConstantOfShape and the Random operators: the shape is an argument."""
    if call.op == "ConstantOfShape":
        value = call.attr("value", None)
        return [(tuple(call.sizes(0)), DTYPES["float32"] if value is None else value.dtype)]
    if call.op.endswith("Like"):
        return [(call.value(0).shape, call.attr_dtype("dtype") if call.has("dtype") else call.value(0).dtype)]
    return [(tuple(call.attr("shape")), call.attr_dtype("dtype"))]


def arange(call: Call) -> list[Sized]:
    """Range: (limit - start) / step numbers, rounded up."""
    start, limit, step = (call.sizes(i)[0] for i in range(3))
    if step == 0:
        raise call.fail("its step is 0")
    count = (
        (limit - start + step - 1) // step
        if not isinstance(step, int) or step > 0
        else (start - limit - step - 1) // -step
    )
    return [((max(count, 0) if isinstance(count, int) else count,), call.value(0).dtype)]


def one_hot(call: Call) -> list[Sized]:
    """The indices' shape with the depth as a new dim."""
    index, axis = call.value(0), call.attr("axis", -1)
    at = call.axis(axis, index.rank + 1)
    return [((*index.shape[:at], call.sizes(1)[0], *index.shape[at:]), call.value(2).dtype)]


def top_k(call: Call) -> list[Sized]:
    """The k first along the axis: values and places."""
    x = call.value(0)
    axis = call.axis(call.attr("axis", -1), x.rank)
    k = call.attr("k") if call.has("k") else call.sizes(1)[0]
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [(shape, x.dtype), (shape, INT64)]


def found(call: Call) -> list[Sized]:
    """Operators whose result is as long as the data make it: the length is a new open size, at most all of them."""
    x = call.value(0)
    if call.op == "NonZero":
        return [((x.rank, call.scope.counted(call, x.elements)), INT64)]
    if call.op == "NonMaxSuppression":
        classes, boxes = call.value(1).shape[1], x.shape[1]
        most = call.given(2)
        each: DimLike = boxes
        if most is not None and most.data is not None and most.data.size:
            each = smaller(boxes, int(most.data.flat[0]))
        return [((call.scope.counted(call, x.shape[0] * classes * each), 3), INT64)]
    axis = call.attr("axis", None)
    whole = x.elements if axis is None else x.shape[call.axis(axis, x.rank)]
    count = call.scope.counted(call, whole)
    kept: Shape = (count,)
    if axis is not None:
        at = call.axis(axis, x.rank)
        kept = (*x.shape[:at], count, *x.shape[at + 1 :])
    outs: list[Sized] = [(kept, x.dtype), ((count,), INT64), ((whole,), INT64), ((count,), INT64)]
    return outs[: len(call.node.output)]


def measured(call: Call) -> list[Sized]:
    """Shape and Size: numbers the host knows."""
    if call.op == "Size":
        return [((), INT64)]
    dims = call.value(0).shape[slice(call.attr("start", 0), call.attr("end", None))]
    return [((len(dims),), INT64)]


def recurrent(call: Call) -> list[Sized]:
    """LSTM, GRU, RNN: (steps, directions, batch, hidden) and the last states."""
    x, r = call.value(0), call.value(2)
    if x.rank != 3 or r.rank != 3:
        raise call.fail("expected an input and recurrent weights of rank 3")
    first = call.attr("layout", 0)
    steps, batch = (x.shape[1], x.shape[0]) if first else x.shape[:2]
    directions, hidden = r.shape[0], r.shape[1 if call.op == "DynamicQuantizeLSTM" else 2]
    all_of_them = (batch, steps, directions, hidden) if first else (steps, directions, batch, hidden)
    last = (batch, directions, hidden) if first else (directions, batch, hidden)
    return [(all_of_them, x.dtype), (last, x.dtype), (last, x.dtype)][: len(call.node.output)]


def as_type(dtype: DType, sizes: Iterable[Sized]) -> list[Sized]:
    """The same shapes in another format."""
    return [(shape, dtype) for shape, _ in sizes]
