"""The sizes that windows over a tensor leave: convolutions, pools, resizing, padding, spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foretrace.ir import Dim, DimLike, Shape

from .call import Call, Sized
from .shapes import INT64
from .values import OpenSizeError


def window(call: Call, size: DimLike, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> DimLike:
    """Places that a window of *kernel* takes along *size*."""
    if stride < 1 or dilation < 1 or kernel < 0:
        raise call.fail(f"kernel {kernel}, stride {stride}, dilation {dilation}: expected at least 1")
    mode = call.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return (size + stride - 1) // stride
    before, after = (0, 0) if mode == "VALID" else pads
    room = size + before + after - dilation * (kernel - 1) - 1
    if call.attr("ceil_mode", 0):
        out = (room + stride - 1) // stride + 1
        return (
            out - 1 if isinstance(out, int) and isinstance(size, int) and (out - 1) * stride >= size + before else out
        )
    return room // stride + 1


def windows(call: Call, spatial: Sequence[DimLike], kernel: Sequence[int]) -> Shape:
    """`window` along every spatial dim, by the node's attributes."""
    n = len(spatial)
    strides, dilations, pads = (
        call.attr("strides", [1] * n),
        call.attr("dilations", [1] * n),
        call.attr("pads", [0] * 2 * n),
    )
    if not len(kernel) == len(strides) == len(dilations) == len(pads) / 2 == n:
        raise call.fail(f"kernel, strides, dilations and pads do not match its {n} spatial dims")
    return tuple(
        window(call, d, kernel[i], strides[i], dilations[i], (pads[i], pads[i + n])) for i, d in enumerate(spatial)
    )


def pool(call: Call) -> list[Sized]:
    """A window over the spatial dims."""
    x = call.value(0)
    out = (*x.shape[:2], *windows(call, x.shape[2:], call.attr("kernel_shape")))
    return [(out, x.dtype), (out, INT64)][: len(call.node.output)]


def global_pool(call: Call) -> list[Sized]:
    """Spatial dims become one."""
    x = call.value(0)
    return [((*x.shape[:2], *(1 for _ in x.shape[2:])), x.dtype)]


def resize(call: Call) -> list[Sized]:
    """Resize and Upsample: sizes if they are given, else the dims times the scales."""
    x = call.value(0)
    scales_at, sizes_at = (1, 9) if call.op == "Upsample" or len(call.ins) == 2 else (2, 3)
    axes = [call.axis(a, x.rank) for a in call.attr("axes", list(range(x.rank)))]
    out = list(x.shape)
    wanted = call.given(sizes_at)
    if wanted is not None and wanted.shape != (0,):
        if call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise call.fail("keeps an aspect ratio, which is not read")
        found = call.sizes(sizes_at)
    else:
        scales = call.attr("scales") if call.has("scales") else list(call.data(scales_at).ravel())
        if len(scales) != len(axes):
            raise call.fail(f"has {len(scales)} scales for {len(axes)} axes")
        found = [scaled(call, out[a], s) for a, s in zip(axes, scales, strict=True)]
    for a, size in zip(axes, found, strict=True):
        out[a] = size
    return [(tuple(out), x.dtype)]


def scaled(call: Call, size: DimLike, scale: float | DimLike) -> DimLike:
    """*size* times *scale*, rounded down."""
    if isinstance(scale, (Dim, int)) or float(scale).is_integer():
        return size * (scale if isinstance(scale, Dim) else int(scale))
    if isinstance(size, int):
        return math.floor(size * scale)
    top, bottom = float(scale).as_integer_ratio()
    if bottom > 1 << 10:
        raise OpenSizeError(f"{call.where}: scales {size} by {scale}", size.symbols)
    return size * top // bottom


def padded(call: Call) -> list[Sized]:
    """Each dim and what is put around it."""
    x = call.value(0)
    pads = call.attr("pads") if call.has("pads") else call.attr("paddings") if call.has("paddings") else call.sizes(1)
    axes = [call.axis(a, x.rank) for a in call.ints("axes", 3, range(x.rank))]
    if len(pads) != 2 * len(axes):
        raise call.fail(f"has {len(pads)} pads for {len(axes)} axes")
    out = list(x.shape)
    for i, a in enumerate(axes):
        out[a] = out[a] + pads[i] + pads[i + len(axes)]
    return [(tuple(out), x.dtype)]


def blocks(call: Call) -> list[Sized]:
    """DepthToSpace and SpaceToDepth."""
    x, size = call.value(0), call.attr("blocksize")
    if size < 1 or x.rank != 4:
        raise call.fail(f"block size {size} of a tensor of rank {x.rank}")
    n, c, h, w = x.shape
    if call.op == "DepthToSpace":
        return [((n, c // (size * size), h * size, w * size), x.dtype)]
    return [((n, c * size * size, h // size, w // size), x.dtype)]


def spectrum(call: Call) -> list[Sized]:
    """STFT and DFT: real and imaginary parts in the last dim."""
    x = call.value(0)
    sided = call.attr("onesided", int(call.op == "STFT"))
    if call.op == "STFT":
        window = call.given(2)
        length = call.sizes(3)[0] if call.given(3) is not None else window.shape[0] if window else x.shape[1]
        frames = (x.shape[1] - length) // call.sizes(1)[0] + 1
        return [((x.shape[0], frames, length // 2 + 1 if sided else length, 2), x.dtype)]
    axis = call.ints("axis", 2, [1 if call.scope.opsets.get("", 20) < 20 else -2])[0]
    at = call.axis(axis, x.rank)
    length = call.sizes(1)[0] if call.given(1) is not None else x.shape[at]
    return [((*x.shape[:at], length // 2 + 1 if sided else length, *x.shape[at + 1 : -1], 2), x.dtype)]
