"""Matrix-like operators: their sizes, and the geometry that cost models read (`ir.work`)."""

from __future__ import annotations

from typing import Any

from foretrace.ir import DTYPES, DimLike, Shape, dim_min, prod

from .call import Call, Sized
from .shapes import divided
from .values import Value
from .windows import windows

_FACTORS = {"QLinearMatMul": (0, 3), "QGemm": (0, 3)}
_BIAS = {"Gemm": 2, "QGemm": 6, "MatMulNBits": 5, "DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}


def _factors(call: Call) -> tuple[Shape, Shape]:
    """The shapes multiplied, transposes undone."""
    first, second = _FACTORS.get(call.op, (0, 1))
    a = call.value(first).shape
    if call.op == "MatMulNBits":
        return a, (call.attr("K"), call.attr("N"))
    b = call.value(second).shape
    if call.attr("transA", 0) and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if call.attr("transB", 0) and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    return a, b


def matmul(call: Call) -> list[Sized]:
    """(..., m, k) × (..., k, n)."""
    a, b = _factors(call)
    if not a or not b:
        raise call.fail("multiplies a scalar")
    call.equal(a[-1], b[-2] if len(b) > 1 else b[-1])
    batch = call.broadcast(a[:-2], b[:-2])
    out = (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))
    dtype = call.value(0).dtype
    if call.op in ("MatMulInteger", "QLinearMatMul"):
        zero = call.given(7)
        dtype = DTYPES["int32"] if call.op == "MatMulInteger" else zero.dtype if zero else dtype
    elif call.op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        dtype = call.value(2).dtype
    return [(out, dtype)]


def matmul_geometry(call: Call) -> dict[str, Any]:
    """b, m, n, k; a right side of two dims takes every row of the left one at once."""
    a, b = _factors(call)
    out = call.shapes()[0][0]
    n = b[-1] if len(b) > 1 else 1
    rows = out[:-1] if len(b) > 1 else out
    bias = call.op in _BIAS and call.given(_BIAS[call.op]) is not None
    if len(b) <= 2 or len(a) < 2:
        return {
            "b": 1 if len(b) <= 2 else prod(rows),
            "m": prod(rows) if len(b) <= 2 else 1,
            "n": n,
            "k": a[-1],
            "bias": bias,
        }
    return {"b": prod(rows[:-1]), "m": rows[-1], "n": n, "k": a[-1], "bias": bias}


def einsum(call: Call) -> list[Sized]:
    """Each letter is a size; those of the result in its order."""
    terms, result, size = _letters(call)
    return [(tuple(size[letter] for letter in result), call.value(0).dtype)] if terms else []


def _letters(call: Call) -> tuple[list[str], str, dict[str, DimLike]]:
    equation = call.attr("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(call.ins):
        raise call.fail(f"the equation {equation!r} is for {len(terms)} inputs")
    most = 0
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    for i, term in enumerate(terms):
        most = max(most, call.value(i).rank - len(term.replace("...", "")) if "..." in term else 0)
    for i, term in enumerate(terms):
        width = call.value(i).rank - len(term.replace("...", ""))
        terms[i] = term.replace("...", "".join(spare[most - width : most]) if width > 0 else "")
    result = result.replace("...", "".join(spare[:most]))
    size: dict[str, DimLike] = {}
    for i, term in enumerate(terms):
        shape = call.value(i).shape
        if len(term) != len(shape):
            raise call.fail(f"the equation {equation!r} does not fit an input of rank {len(shape)}")
        for letter, d in zip(term, shape, strict=True):
            known = size.get(letter, 1)
            size[letter] = d if known == 1 else known if d == 1 else call.equal(known, d)
    if not arrow:
        result = "".join(sorted(c for c in size if sum(t.count(c) for t in terms) == 1))
    if unknown := set(result) - size.keys():
        raise call.fail(f"the equation {equation!r} gives {sorted(unknown)} out of nothing")
    return terms, result, size


def einsum_geometry(call: Call) -> dict[str, Any]:
    """b, m, n, k of a contraction of two; the geometry of others is that of their full index space."""
    terms, result, size = _letters(call)
    k = prod(size[c] for c in size if c not in result)
    if len(terms) != 2:
        return {"b": 1, "m": prod(size[c] for c in result), "n": 1, "k": k, "bias": False}
    both = [c for c in result if c in terms[0] and c in terms[1]]
    m, n = (prod(size[c] for c in result if c in term and c not in both) for term in terms)
    return {"b": prod(size[c] for c in both), "m": m, "n": n, "k": k, "bias": False}


def _convolved(call: Call) -> tuple[Value, Shape]:
    x, weight = call.value(0), call.value(3 if call.op == "QLinearConv" else 1).shape
    if x.rank < 3 or len(weight) != x.rank or call.attr("group", 1) < 1:
        raise call.fail(f"convolves a tensor of rank {x.rank} with weights of rank {len(weight)}")
    return x, weight


def _kernel(call: Call, weight: Shape) -> list[int]:
    sizes = [d for d in weight[2:] if isinstance(d, int)]
    if len(sizes) != len(weight) - 2:
        raise call.fail(f"its kernel has an open size: {list(weight)}")
    return sizes


def convolution(call: Call) -> list[Sized]:
    """A kernel over the spatial dims."""
    x, weight = _convolved(call)
    kernel = _kernel(call, weight)
    dtype = x.dtype
    if call.op in ("ConvInteger", "QLinearConv"):
        zero = call.given(7)
        dtype = DTYPES["int32"] if call.op == "ConvInteger" else zero.dtype if zero else dtype
    if call.op != "ConvTranspose":
        call.equal(x.shape[1], weight[1] * call.attr("group", 1))
        return [((x.shape[0], weight[0], *windows(call, x.shape[2:], kernel)), dtype)]
    call.equal(x.shape[1], weight[0])
    return [((x.shape[0], weight[1] * call.attr("group", 1), *_spread(call, x.shape[2:], kernel)), dtype)]


def _spread(call: Call, spatial: Shape, kernel: list[int]) -> Shape:
    """Spatial sizes after a transposed convolution."""
    n = len(spatial)
    if call.has("output_shape"):
        return tuple(call.attr("output_shape")[-n:])
    strides, dilations = call.attr("strides", [1] * n), call.attr("dilations", [1] * n)
    pads, extra = call.attr("pads", [0] * 2 * n), call.attr("output_padding", [0] * n)
    if not len(kernel) == len(strides) == len(dilations) == len(extra) == len(pads) / 2 == n:
        raise call.fail(f"strides, dilations and pads do not match its {n} spatial dims")
    if call.attr("auto_pad", "NOTSET").startswith("SAME"):
        return tuple(d * s for d, s in zip(spatial, strides, strict=True))
    return tuple(
        (d - 1) * strides[i] + extra[i] + dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + n]
        for i, d in enumerate(spatial)
    )


def convolution_geometry(call: Call) -> dict[str, Any]:
    """The sizes of a convolution; ``k`` multiply-adds an output element (of a transposed one, on average)."""
    x, weight = _convolved(call)
    out = call.shapes()[0][0]
    k = prod(weight[1:])
    if call.op == "ConvTranspose":
        k = divided(x.elements * k, prod(out)) if prod(out) != 0 else 0
    return {
        "batch": out[0],
        "out_channels": out[1],
        "in_channels": x.shape[1],
        "groups": call.attr("group", 1),
        "kernel": tuple(weight[2:]),
        "out_size": tuple(out[2:]),
        "k": k,
        "bias": call.given(8 if call.op == "QLinearConv" else 2) is not None,
    }


def convolution_flops(call: Call) -> DimLike | None:
    """Exact multiply-adds times two where a whole ``k`` cannot say them: every input element meets the kernel."""
    if call.op != "ConvTranspose":
        return None
    x, weight = _convolved(call)
    return 2 * x.elements * prod(weight[1:])


def unfold(call: Call) -> list[Sized]:
    """Col2Im: the picture whose patches the columns are."""
    x, block = call.value(0), prod(call.sizes(2))
    return [((x.shape[0], divided(x.shape[1], block), *call.sizes(1)), x.dtype)]


def attention(call: Call) -> list[Sized]:
    """The result, and the keys and values it leaves for the next step."""
    a = attention_geometry(call)
    q = call.value(0)
    dtype, batch, keys = q.dtype, a["batch"], a["kv_len"]
    out: Shape = (batch, a["q_len"], a["heads"] * a["v_dim"])
    if call.domain == "" and q.rank == 4:
        out = (batch, a["heads"], a["q_len"], a["v_dim"])
    if call.op in ("Attention", "QAttention") and call.domain:
        return [(out, dtype), ((2, batch, a["heads"], keys, a["head_dim"]), dtype)][: len(call.node.output)]
    present = [((batch, a["kv_heads"], keys, a[d]), dtype) for d in ("head_dim", "v_dim")]
    scores: Sized = ((batch, a["heads"], a["q_len"], keys), dtype)
    return [(out, dtype), *present, scores][: len(call.node.output)]


def attention_geometry(call: Call) -> dict[str, Any]:
    """batch, heads, kv_heads, q_len, kv_len, head_dim, v_dim."""
    if call.domain and call.op in ("Attention", "QAttention"):
        found = _packed(call)
    elif call.domain and call.op == "GroupQueryAttention":
        found = _grouped(call)
    else:
        found = _plain(call)
    q, k = found["q_len"], found["kv_len"]
    causal = bool(call.attr("is_causal", call.attr("unidirectional", int(call.op == "GroupQueryAttention"))))
    window_size = call.attr("local_window_size", -1)
    more = {"window": dim_min(window_size, k)} if window_size > 0 else {}
    return {**found, "causal": causal and (q != 1), "masked": _is_masked(call), **more}


def _is_masked(call: Call) -> bool:
    places = {
        "": (3,),
        "Attention": (3, 5),
        "QAttention": (5,),
        "MultiHeadAttention": (4, 5),
        "GroupQueryAttention": (10,),
    }
    return any(call.given(i) is not None for i in places.get(call.op if call.domain else "", ()))


def _sizes(batch: DimLike, heads: int, kv: int, q: DimLike, k: DimLike, d: DimLike, v: DimLike) -> dict[str, Any]:
    return {"batch": batch, "heads": heads, "kv_heads": kv, "q_len": q, "kv_len": k, "head_dim": d, "v_dim": v}


def _heads(call: Call, name: str, default: Any = None) -> int:
    heads = call.attr(name, default)
    if not isinstance(heads, int) or heads < 1:
        raise call.fail(f"{name} is {heads}, expected at least 1")
    return heads


def _many(call: Call, heads: DimLike) -> int:
    if not isinstance(heads, int) or heads < 1:
        raise call.fail(f"the number of heads is {heads}")
    return heads


def _packed(call: Call) -> dict[str, Any]:
    """com.microsoft Attention: projects its input by packed weights, then attends."""
    x, weight = call.value(0), call.value(1)
    heads = _heads(call, "num_heads")
    if x.rank != 3 or weight.rank != 2:
        raise call.fail("expected an input of rank 3 and packed weights of rank 2")
    hidden = call.attr("qkv_hidden_sizes", [weight.shape[1] // 3] * 3)
    past = call.given(8 if call.op == "QAttention" else 4)
    keys = x.shape[1] if past is None or past.rank != 5 else past.shape[3] + x.shape[1]
    return _sizes(x.shape[0], heads, heads, x.shape[1], keys, hidden[0] // heads, hidden[2] // heads)


def _grouped(call: Call) -> dict[str, Any]:
    """com.microsoft GroupQueryAttention: fewer KV heads, the cache grown by the new tokens."""
    q, key, past = call.value(0), call.given(1), call.given(3)
    heads, kv = _heads(call, "num_heads"), _heads(call, "kv_num_heads")
    if q.rank != 3:
        raise call.fail(f"expected a query of rank 3, got {q.rank}")
    d = q.shape[2] // (heads if key is not None else heads + 2 * kv)
    total = call.given(6)
    keys = q.shape[1] if past is None or past.rank != 4 else past.shape[2] + q.shape[1]
    if total is not None and total.data is not None:
        keys = call.sizes(6)[0]
    return _sizes(q.shape[0], heads, kv, q.shape[1], keys, d, d)


def _plain(call: Call) -> dict[str, Any]:
    """ONNX's own Attention and com.microsoft MultiHeadAttention."""
    q, ours = call.value(0), call.domain == ""
    heads = _many(call, q.shape[1]) if q.rank == 4 else _heads(call, "q_num_heads" if ours else "num_heads")
    if q.rank == 5:  # (batch, length, heads, 3, head_dim): packed
        return _sizes(q.shape[0], heads, heads, q.shape[1], q.shape[1], q.shape[4], q.shape[4])
    k, past = call.value(1), call.given(4 if ours else 6)
    v = call.given(2) or k
    new = k.shape[2] if k.rank == 4 else k.shape[1]
    keys = new if past is None or past.rank != 4 else past.shape[2] + new
    if k.rank == 5:  # (batch, length, heads, 2, head_dim): packed
        return _sizes(q.shape[0], heads, heads, q.shape[1], keys, k.shape[4], k.shape[4])
    kv = _many(call, k.shape[1]) if k.rank == 4 else _heads(call, "kv_num_heads" if ours else "num_heads")
    d = q.shape[3] if q.rank == 4 else q.shape[2] // heads
    v_dim = v.shape[3] if v.rank == 4 else v.shape[2] // kv
    return _sizes(q.shape[0], heads, kv, q.shape[2] if q.rank == 4 else q.shape[1], keys, d, v_dim)
