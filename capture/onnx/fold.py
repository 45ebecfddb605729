"""Values that shapes are made of, worked out with open sizes in them: Shape → Gather → Mul → Concat → ... → Reshape.

Every function takes the call and gives the data of its outputs, or raises `Unknown`. Data are
numpy arrays of dtype object: ints, floats, bools and Dims, on which Python's own arithmetic is exact.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import Dim, ForetraceError

from .bounds import Unknown, compare, larger, smaller
from .values import MAX_KNOWN

if TYPE_CHECKING:
    from .call import Call

Array = np.ndarray[Any, Any]


def fold(call: Call) -> list[Array] | None:
    """The data of the outputs of *call*, if they follow from what is known."""
    function = _FOLDS.get(call.op) if call.domain == "" else None
    if function is None:
        return None
    try:
        result = function(call)
    except (Unknown, ArithmeticError, ValueError, TypeError, IndexError, ForetraceError):
        return None
    results = result if isinstance(result, list) else [result]
    if any(r.size > MAX_KNOWN for r in results):
        return None
    return [r if r.dtype == object else r.astype(object) for r in results]


def _data(call: Call, i: int = 0) -> Array:
    value = call.given(i)
    if value is None or value.data is None:
        raise Unknown
    return value.data


_RELATIONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


def _each(function: Callable[..., Any]) -> Callable[[Call], Array]:
    def run(call: Call) -> Array:
        arrays = np.broadcast_arrays(*(_data(call, i) for i in range(len(call.ins))))
        if arrays[0].size > MAX_KNOWN:
            raise Unknown
        out = np.empty(arrays[0].shape, object)
        for at in np.ndindex(out.shape):
            out[at] = function(*(a[at] for a in arrays))
        return out

    return run


def _number(value: Any) -> Any:
    """A float that is a whole number as an int, where it meets a Dim."""
    if isinstance(value, float):
        if not value.is_integer():
            raise Unknown
        return int(value)
    return value


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def run(a: Any, b: Any) -> Any:
        if isinstance(a, Dim) or isinstance(b, Dim):
            return function(_number(a), _number(b))
        return function(a, b)

    return run


def _multiply(a: Any, b: Any) -> Any:
    for dim, factor in ((a, b), (b, a)):
        if isinstance(dim, Dim) and isinstance(factor, float) and 0 < factor < 1 and (1 / factor).is_integer():
            return _exact(dim, round(1 / factor))
    return _arithmetic(operator.mul)(a, b)


def _exact(a: Any, b: Any) -> Any:
    if a % b != 0:
        raise Unknown
    return a // b


def _divide(call: Call) -> Array:
    is_float = call.ins[0] is not None and call.ins[0].dtype.is_float

    def run(a: Any, b: Any) -> Any:
        if isinstance(a, Dim) or isinstance(b, Dim):
            return _exact(_number(a), _number(b)) if is_float else a // b
        return a / b if is_float else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)

    return _each(run)(call)


def _modulo(a: Any, b: Any) -> Any:
    return _arithmetic(operator.mod)(a, b)


def _power(a: Any, b: Any) -> Any:
    if isinstance(a, Dim):
        raise Unknown
    return a ** (int(b) if isinstance(b, float) and b.is_integer() else b)


def _relation(text: str) -> Callable[[Any, Any], bool]:
    def run(a: Any, b: Any) -> bool:
        if isinstance(a, Dim) or isinstance(b, Dim):
            return compare(_number(a), _number(b), text)
        return bool(_RELATIONS[text](a, b))

    return run


def _extreme(dims: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        if all(isinstance(v, int | Dim) for v in values):
            result = values[0]
            for v in values[1:]:
                result = dims(result, v)
            return result
        if any(isinstance(v, Dim) for v in values):
            raise Unknown
        return max(values) if dims is larger else min(values)

    return run


def _unary(numbers: Callable[[Any], Any], dims: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    def run(a: Any) -> Any:
        if isinstance(a, Dim):
            if dims is None:
                raise Unknown
            return dims(a)
        return numbers(a)

    return run


def _same(a: Any) -> Any:
    return a


def _cast(call: Call) -> Array:
    dtype = call.attr_dtype("to") if call.op == "Cast" else call.ins[1].dtype  # type: ignore[union-attr]
    convert: dict[str, Callable[[Any], Any]] = {"int": int, "uint": int, "float": float, "bool": bool}
    to = convert.get(dtype.sort)
    if to is None:
        raise Unknown

    def run(a: Any) -> Any:
        if isinstance(a, Dim):
            return compare(a, 0, ">") if dtype.sort == "bool" else a
        return to(a)

    first = _data(call).ravel()
    out = np.empty(first.shape, object)
    for i, v in enumerate(first):
        out[i] = run(v)
    return out.reshape(_data(call).shape)


def _shape(call: Call) -> Array:
    source = call.value(0)
    dims = list(source.shape)[slice(call.attr("start", 0), call.attr("end", None))]
    out = np.empty(len(dims), object)
    out[:] = dims
    return out


def _split(call: Call) -> list[Array]:
    parts: list[Any] = [shape[0] for shape, _ in call.shapes()]
    if _data(call).ndim != 1:
        raise Unknown
    return [np.asarray(p, object) for p in np.split(_data(call), np.cumsum(parts)[:-1].tolist())]


def _size(call: Call) -> Array:
    return np.array(call.value(0).elements, object)


def _gather(call: Call) -> Array:
    return np.array(np.take(_data(call), _data(call, 1).astype(np.int64), axis=call.attr("axis", 0)), object)


def _concat(call: Call) -> Array:
    return np.concatenate([_data(call, i) for i in range(len(call.ins))], axis=call.attr("axis", 0))


def _slice(call: Call) -> Array:
    data = _data(call)
    starts, ends = call.ints("starts", 1), call.ints("ends", 2)
    axes, steps = call.ints("axes", 3, range(len(starts))), call.ints("steps", 4, [1] * len(starts))
    index: list[Any] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return np.asarray(data[tuple(index)], object)


def _reshaped(call: Call) -> Array:
    """The same elements in the order they were, in another shape (`shapes` says which)."""
    shape, _ = call.shapes()[0]
    return _data(call).reshape([operator.index(d) for d in list[Any](shape)])


def _transpose(call: Call) -> Array:
    return _data(call).transpose(call.attr("perm", None))


def _constant_of_shape(call: Call) -> Array:
    shape = [operator.index(v) for v in _data(call)]
    if math.prod(shape) > MAX_KNOWN:
        raise Unknown
    fill = call.attr("value", None)
    return np.full(shape, 0.0 if fill is None or fill.data is None else fill.data.flat[0], object)


def _expand(call: Call) -> Array:
    shape = [operator.index(v) for v in _data(call, 1)]
    if math.prod(shape) > MAX_KNOWN:
        raise Unknown
    data = _data(call)
    return np.array(np.broadcast_to(data, np.broadcast_shapes(data.shape, shape)), object)


def _range_of(call: Call) -> Array:
    start, limit, step = (_data(call, i).item() for i in range(3))
    if any(isinstance(v, Dim) for v in (start, limit, step)) or abs((limit - start) / step) > MAX_KNOWN:
        raise Unknown
    return np.array(np.arange(start, limit, step).tolist(), object)


def _reduce(function: Callable[[Any, Any], Any]) -> Callable[[Call], Array]:
    def run(call: Call) -> Array:
        data = _data(call)
        axes = call.ints("axes", 1, range(data.ndim))
        if data.ndim != 1 or list(axes) not in ([0], [-1]) or not data.size:
            raise Unknown
        total = data[0]
        for v in data[1:]:
            total = function(total, v)
        out = np.empty(1, object)
        out[0] = total
        return out if call.attr("keepdims", 1) else out.reshape(())

    return run


def _where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Dim):
        raise Unknown
    return a if condition else b


_FOLDS: Final[dict[str, Callable[[Call], Array | list[Array]]]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range_of,
    "Cast": _cast,
    "CastLike": _cast,
    "Div": _divide,
    "ReduceProd": _reduce(_multiply),
    "ReduceSum": _reduce(_arithmetic(operator.add)),
    "ReduceMax": _reduce(_extreme(larger)),
    "ReduceMin": _reduce(_extreme(smaller)),
    "Add": _each(_arithmetic(operator.add)),
    "Sub": _each(_arithmetic(operator.sub)),
    "Mul": _each(_multiply),
    "Mod": _each(_modulo),
    "Pow": _each(_power),
    "Max": _each(_extreme(larger)),
    "Min": _each(_extreme(smaller)),
    "Equal": _each(_relation("==")),
    "Less": _each(_relation("<")),
    "LessOrEqual": _each(_relation("<=")),
    "Greater": _each(_relation(">")),
    "GreaterOrEqual": _each(_relation(">=")),
    "And": _each(lambda a, b: a and b),
    "Or": _each(lambda a, b: a or b),
    "Not": _each(lambda a: not a),
    "Where": _each(_where),
    "Neg": _each(operator.neg),
    "Abs": _each(_unary(abs, _same)),
    "Floor": _each(_unary(lambda a: float(math.floor(a)), _same)),
    "Ceil": _each(_unary(lambda a: float(math.ceil(a)), _same)),
    "Round": _each(_unary(lambda a: float(round(a)), _same)),
    "Sqrt": _each(_unary(math.sqrt)),
    "Reciprocal": _each(_unary(lambda a: 1 / a)),
    "Identity": _each(_same),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshaped),
}
