"""Operators of given sizes as columns, chips with one figure changed, and their prices by physics: for its tests."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foretrace.hardware import Accelerator, Link, System, load_system
from foretrace.ir import OpKind, parse_dtype
from foretrace.ir.work import VECTOR_FLOPS_PER_ELEMENT
from foretrace.replay.costs import Costs
from foretrace.replay.costs.physics import Physics, Profile
from foretrace.replay.measured.columns import Block, MeasuredColumns, Sizes, dtype_codes, join

Sized = float | Sequence[float] | NDArray[np.float64]

SOFTWARE: Final = ("serving", "eager", "compiled", "vllm", "sglang", "trtllm")
CHIPS: Final = (
    "h100-sxm", "h200", "h20", "h100-pcie", "b200", "gb300", "a100-sxm-80gb", "a10g", "a40", "l4", "l40s", "rtx-4090",
    "rtx-5090", "v100-sxm-32gb", "t4", "p100-pcie-16gb", "mi100", "mi250x", "mi300x", "mi355x", "gaudi3", "tpu-v5e",
    "tpu-v6e", "trainium2", "maia-100", "ascend-910b", "x86-cpu",
)  # fmt: skip
"""Of every pipeline and maker."""
LINKED: Final = ("h100-sxm", "h200", "a100-sxm-80gb", "v100-sxm-32gb", "l40s", "b200", "mi300x", "tpu-v6e")


def block(
    kind: OpKind, name: str, dtype: str, attributes: dict[str, Sizes], read: Sized, written: Sized, **work: Sized
) -> Block:
    """One operator a row, r rows: as long as the longest of its sizes."""
    columns = {**attributes, "read": read, "written": written, **work}
    shape = np.broadcast_shapes(*(np.shape(np.atleast_1d(np.asarray(v, np.float64))) for v in columns.values()))
    whole = {key: np.broadcast_to(np.asarray(value, np.float64), shape).copy() for key, value in columns.items()}
    rows = shape[0]
    return Block(
        np.arange(rows),
        kind,
        name,
        dtype_codes(parse_dtype(dtype), rows),
        {key: whole[key] for key in attributes},
        whole["read"],
        whole["written"],
        **{key: whole[key] for key in work},
    )


def size_of(dtype: str) -> float:
    """bytes of an element."""
    return parse_dtype(dtype).bits / 8


def gemm(m: Sized, n: Sized, k: Sized, b: Sized = 1.0, dtype: str = "bfloat16", name: str = "aten.mm.default") -> Block:
    """b products [m, k] x [k, n]; all operands cold."""
    m, n, k, b = (np.asarray(v, np.float64) for v in (m, n, k, b))
    e, out = size_of(dtype), max(size_of(dtype), 2.0)
    sizes: dict[str, Sizes] = {"b": b, "m": m, "n": n, "k": k}
    return block(
        OpKind.MATMUL,
        name,
        dtype,
        sizes,
        b * (m + n) * k * e,
        b * m * n * out,
        matrix_flops=2 * b * m * n * k,
        length=k,
    )


def attention(
    batch: Sized,
    q_len: Sized,
    kv_len: Sized,
    heads: Sized = 32.0,
    kv_heads: Sized = 8.0,
    head_dim: Sized = 128.0,
    v_dim: Sized | None = None,
    *,
    causal: bool = True,
    window: Sized = 0.0,
    kv_dtype: str = "",
    dtype: str = "bfloat16",
    backward: bool = False,
) -> Block:
    """Calls of attention; all operands cold."""
    batch, q_len, kv_len, heads, kv_heads, head_dim = (
        np.asarray(v, np.float64) for v in (batch, q_len, kv_len, heads, kv_heads, head_dim)
    )
    v_dim = head_dim if v_dim is None else np.asarray(v_dim, np.float64)
    e, of_cache = size_of(dtype), size_of(kv_dtype or dtype)
    scores = batch * heads * q_len * kv_len
    sizes: dict[str, Sizes] = {
        "batch": batch, "q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "v_dim": v_dim, "causal": float(causal), "window": np.asarray(window, np.float64), "kv_bytes": of_cache,
        "backward": float(backward),
    }  # fmt: skip
    return block(
        OpKind.ATTENTION,
        "aten.scaled_dot_product_attention.default",
        dtype,
        sizes,
        batch * q_len * heads * head_dim * e + batch * kv_len * kv_heads * (head_dim + v_dim) * of_cache,
        batch * q_len * heads * v_dim * max(e, 2.0),
        matrix_flops=2 * scores * (3 * head_dim + 2 * v_dim if backward else head_dim + v_dim),
        vector_flops=4 * scores,
        special_flops=scores,
        length=head_dim,
    )


def stream(
    kind: OpKind,
    name: str,
    rows: Sized,
    cols: Sized,
    dtype: str = "bfloat16",
    *,
    reads: float = 1.0,
    writes: float = 1.0,
    special: float = 0.0,
) -> Block:
    """An operator that walks [rows, cols] of *reads* inputs once and writes *writes* as large."""
    rows, cols = np.asarray(rows, np.float64), np.asarray(cols, np.float64)
    elements = rows * cols
    return block(
        kind,
        name,
        dtype,
        {},
        elements * reads * size_of(dtype),
        elements * writes * size_of(dtype),
        vector_flops=elements * VECTOR_FLOPS_PER_ELEMENT.get(kind, 0),
        special_flops=elements * special,
        length=cols,
    )


def experts(
    m: Sized, n: Sized, k: Sized, groups: Sized, dtype: str = "bfloat16", name: str = "aten._grouped_mm"
) -> Block:
    """A grouped product of m rows in all, dealt out to *groups* experts in turn."""
    m, n, k, groups = (np.asarray(v, np.float64) for v in (m, n, k, groups))
    e = size_of(dtype)
    sizes: dict[str, Sizes] = {"b": 1.0, "m": m, "n": n, "k": k, "groups": groups}
    active = np.minimum(groups, m)
    return block(
        OpKind.GROUPED_MATMUL,
        name,
        dtype,
        sizes,
        (m * k + active * n * k) * e,
        m * n * max(e, 2.0),
        matrix_flops=2 * m * n * k,
        length=k,
    )


def convolution(
    batch: Sized,
    c_in: Sized,
    c_out: Sized,
    kernel: Sized,
    out: Sized,
    groups: Sized = 1.0,
    dtype: str = "float16",
    winograd: float = 0.0,
) -> Block:
    """2-D convolutions of stride 1 to [batch, c_out, out, out]."""
    batch, c_in, c_out, kernel, out, groups = (
        np.asarray(v, np.float64) for v in (batch, c_in, c_out, kernel, out, groups)
    )
    e, k = size_of(dtype), c_in / groups * kernel**2
    made = batch * c_out * out**2
    sizes: dict[str, Sizes] = {
        "batch": batch, "out_channels": c_out, "in_channels": c_in, "groups": groups, "k": k, "winograd": winograd,
    }  # fmt: skip
    read = (batch * c_in * (out + kernel - 1) ** 2 + c_out * k) * e
    return block(
        OpKind.CONVOLUTION,
        "aten.convolution.default",
        dtype,
        sizes,
        read,
        made * e,
        matrix_flops=2 * made * k,
        length=out,
    )


def collective(op: str, nbytes: Sized, ranks: Sized, nodes: Sized = 1.0, dtype: str = "bfloat16") -> Block:
    """A collective of a whole buffer of *nbytes*."""
    size = np.asarray(nbytes, np.float64)
    sizes: dict[str, Sizes] = {
        "bytes": size,
        "ranks": np.asarray(ranks, np.float64),
        "nodes": np.asarray(nodes, np.float64),
    }
    return block(OpKind.COLLECTIVE, f"_c10d_functional.{op}.default", dtype, sizes, size, size)


def together(*blocks: Block) -> MeasuredColumns:
    """The rows of *blocks*, in order."""
    return join(blocks)[0]


@lru_cache
def on(chip: str) -> System:
    """The shipped system called *chip*."""
    return load_system(chip)


def price(
    what: Block | MeasuredColumns, chip: str | System, software: str = "serving", profile: Profile | None = None
) -> Costs:
    """The prices of *what* on *chip*."""
    columns = what if isinstance(what, MeasuredColumns) else together(what)
    return Physics(profile).price(columns, on(chip) if isinstance(chip, str) else chip, software)


def seconds(what: Block | MeasuredColumns, chip: str | System, software: str = "serving") -> NDArray[np.float64]:
    """[r] s of each row of *what* on *chip*."""
    return price(what, chip, software).seconds


def scaled(system: System, resource: str, factor: float) -> System:
    """*system* with *factor* times one resource of its accelerator: `RESOURCES`."""
    chip = system.accelerator
    rates = {"matrix": _times(chip.compute.matrix, factor), "vector": _times(chip.compute.vector, factor)}
    clocks = {"clock_hz": chip.clock_hz * factor}
    if chip.vector_clock_hz:
        clocks["vector_clock_hz"] = chip.vector_clock_hz * factor
    changed: dict[str, object]
    if resource == "bandwidth":
        changed = {"memory": chip.memory.model_copy(update={"bandwidth": chip.memory.bandwidth * factor})}
    elif resource == "cores":  # more of the same: the chip's rates grow with them
        changed = {"cores": round(chip.cores * factor), "compute": chip.compute.model_copy(update=rates)}
        exact = round(chip.cores * factor) / chip.cores
        rates = {"matrix": _times(chip.compute.matrix, exact), "vector": _times(chip.compute.vector, exact)}
        changed["compute"] = chip.compute.model_copy(update=rates)
        if chip.tdp_w:  # at the same power more cores would each run slower
            changed["tdp_w"] = chip.tdp_w * exact
    elif resource == "clock":
        changed = {**clocks, "compute": chip.compute.model_copy(update=rates)}
    elif resource == "units":  # wider matrix units
        changed = {"compute": chip.compute.model_copy(update={"matrix": rates["matrix"]})}
    elif resource == "cache" and chip.cache:
        capacity = chip.cache.capacity_bytes * factor
        changed = {"cache": chip.cache.model_copy(update={"capacity_bytes": capacity})}
    elif resource == "power" and chip.tdp_w:
        changed = {"tdp_w": chip.tdp_w * factor}
    elif resource == "links":
        return system.model_copy(update={"network": _faster(system, factor)})
    else:
        return system
    better: Accelerator = chip.model_copy(update=changed)
    return system.model_copy(update={"accelerator": better})


RESOURCES: Final = ("bandwidth", "cores", "clock", "units", "cache", "power", "links")


def _times(rates: dict[str, float], factor: float) -> dict[str, float]:
    return {name: rate * factor for name, rate in rates.items()}


def _faster(system: System, factor: float) -> object:
    def faster(link: Link) -> Link:
        return link.model_copy(update={"bandwidth": link.bandwidth * factor})

    tiers = system.network.tiers()
    return system.network.model_copy(update={name.replace("-", "_"): faster(link) for name, link in tiers.items()})
