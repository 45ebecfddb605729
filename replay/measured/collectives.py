"""Rows of collectives over the accelerators of one or more nodes."""

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.ir import OpKind
from foretrace.replay.columns import Mask

from .columns import Block, MeasuredColumns, join
from .formats import compute_codes, operand_bytes
from .tables import Table, Text, same_text, unfit

if TYPE_CHECKING:
    from foretrace.hardware import System

SIZES: Final = ("n_gpus", "bytes", "n_nodes")
OPTIONAL: Final = ("n_nodes",)

NAMES: Final = {
    "all_reduce": "_c10d_functional.all_reduce.default",
    "all_gather": "_c10d_functional.all_gather_into_tensor.default",
    "reduce_scatter": "_c10d_functional.reduce_scatter_tensor.default",
    "all_to_all": "_c10d_functional.all_to_all_single.default",
    "broadcast": "_c10d_functional.broadcast.default",
    "send_recv": "c10d.send.default",
}
"""Collective by its name in a table → what the framework calls it."""

_PLAIN: Final = r"^nccl"
"""What a row's `impl` is called where NCCL runs it, and no kernel of an engine's own: ``nccl.all_reduce``."""
_LAUNCHED: Final = r"_torch$|_eager$"
"""What a row's `impl` is called where each call was issued by the host, not replayed as part of a captured graph."""


def _normal(op: str) -> str:
    key = op.strip().lower().replace("-", "_")
    return {"allreduce": "all_reduce", "allgather": "all_gather", "alltoall": "all_to_all"}.get(key, key)


def kinds(table: Table) -> Text:
    """[n] all_reduce, all_gather...; all_reduce_across_nodes where it joins more than one."""
    across = Text((table.number("n_nodes", 1.0) > 1).astype(np.int32), ("", "_across_nodes"))
    return table.text("op").joined(across, lambda op, where: f"{_normal(op)}{where}")


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows of collectives that we do not know, or that join nothing."""
    op, ranks = table.text("op"), table.number("n_gpus")
    return [
        *unfit(op, lambda v: _normal(v) in NAMES, lambda v: f"op {v} is no collective that we know"),
        ("a collective of one GPU", ranks == 1),
        ("n_nodes does not divide n_gpus", ranks % table.number("n_nodes", 1.0) != 0),
    ]


def blocks(table: Table) -> list[Block]:
    """One collective each row; `bytes` is the whole buffer: what every rank holds of the larger side."""
    op = table.text("op").map(_normal)
    plain = table.text("impl", "").are(lambda impl: re.search(_PLAIN, impl) is not None)
    found = []
    for value in op.values:
        if value in NAMES:
            chosen = op.is_in({value})
            found += [_block(table, chosen & plain, value, f"nccl.{value}")]
            found += [_block(table, chosen & ~plain, value, NAMES[value])]
    return found


def _block(table: Table, chosen: Mask, op: str, name: str) -> Block:
    ranks, size = table.number("n_gpus")[chosen], table.number("bytes")[chosen]
    dtype = table.text("dtype", "fp16").take(chosen)
    elements = size / operand_bytes(dtype)
    launched = table.text("impl", "").take(chosen).numbers(lambda impl: float(re.search(_LAUNCHED, impl) is not None))
    return Block(
        np.flatnonzero(chosen),
        OpKind.COLLECTIVE,
        name,
        compute_codes(dtype),
        {"bytes": size, "ranks": ranks, "nodes": table.number("n_nodes", 1.0)[chosen], "launched": launched},
        size / ranks if op == "all_gather" else size,
        size / ranks if op == "reduce_scatter" else size,
        vector_flops=elements * float(op in ("all_reduce", "reduce_scatter")),
        length=elements,
    )


def collective(op: str, nbytes: float, ranks: int, nodes: int, dtype: str) -> MeasuredColumns:
    """One collective (a key of `NAMES`) as an operator that cost models price."""
    sizes = {"n_gpus": ranks, "bytes": nbytes, "n_nodes": nodes}
    numbers = {name: np.array([float(size)]) for name, size in sizes.items()}
    table = Table("", 0, 1, numbers | {"op": same_text(op, 1), "dtype": same_text(dtype, 1)})
    return join(blocks(table))[0]


# --- the links that a table says its rows ran over ---------------------------------------------------------------

_NVLINK_BYTES_S: Final = {
    "nvlink1": 80e9,
    "nvlink2": 150e9,
    "nvlink3": 300e9,
    "nvlink4": 450e9,
    "nvlink4_400": 200e9,  # the export versions, H800 and A800
    "nvlink5": 900e9,
}
"""Bytes/s one way of one GPU, all its links together (NVIDIA's data sheets give both ways)."""

_BRIDGE_BYTES_S: Final = {"a100": 300e9, "h100": 300e9, "a40": 56.25e9, "a6000": 56.25e9}
"""Bytes/s one way of the NVLink bridge of a pair of PCIe cards (NVIDIA's data sheets of the cards)."""

_OUT: Final = {"technology": "InfiniBand HDR", "bandwidth": 25e9, "latency": 3e-6, "topology": "switch"}
"""What joins nodes of a system that says nothing of it: one 200 Gb/s link for each GPU, as DGX A100. An assumption."""

_CLUSTER_BYTES_S: Final = {"a100_dgx": 12.5e9}
"""Bytes/s between nodes of one GPU, by the cluster that a table names: the sends of this one's calibration rows reach 8
GB/s over two nodes (`benchmarks/fit_network.py`), so it is taken to have 100 Gb/s a GPU where DGX A100 has 200."""

_PCIE_BYTES_S: Final = {"pcie3": 16e9, "pcie4": 32e9, "pcie5": 64e9, "pcie6": 128e9}
"""Bytes/s one way of 16 lanes."""


def with_interconnect(system: "System", name: str, pair: bool) -> "System":
    """*system* with the links inside a node that a table calls *name*; *pair*: two GPUs are joined.

    ``nvlink4``, ``pcie5``, ``h100_dgx`` (as the library describes the system), ``a40_pairwise_nvlink`` (a bridge joins
    two cards, PCIe the pairs). An empty or unknown name leaves the system as it is.
    """
    from foretrace.hardware import Link

    links, key = system.network, name.strip().lower()

    def link(technology: str, bandwidth: float, topology: str) -> Link:
        fields = {"technology": technology, "bandwidth": bandwidth, "latency": 1e-6, "topology": topology}
        return Link.model_validate(fields, context={"si": True})

    changed: dict[str, Link | None]
    if key.endswith("_pairwise_nvlink"):
        bridge = link("NVLink bridge", _BRIDGE_BYTES_S.get(key.split("_")[0], 300e9), "point-to-point")
        changed = {"scale_up": bridge if pair else None}
    elif key in _NVLINK_BYTES_S:
        changed = {} if links.scale_up else {"scale_up": link(name, _NVLINK_BYTES_S[key], "switch")}
    elif key in _PCIE_BYTES_S:
        same = links.pcie is not None and abs(links.pcie.bandwidth / _PCIE_BYTES_S[key] - 1) < 0.1
        changed = {"scale_up": None} | ({} if same else {"pcie": link(name, _PCIE_BYTES_S[key], "tree")})
    elif key in _CLUSTER_BYTES_S:
        out = links.scale_out or Link.model_validate(_OUT, context={"si": True})
        changed = {"scale_out": out.model_copy(update={"bandwidth": _CLUSTER_BYTES_S[key]})}
        return system.model_copy(update={"network": links.model_copy(update=changed)})
    else:
        return system
    if links.scale_out is None:
        changed["scale_out"] = Link.model_validate(_OUT, context={"si": True})
    return system.model_copy(update={"network": links.model_copy(update=changed)})


def variants(table: Table) -> Text:
    """[n] what `machine` needs to know of a row: the interconnect, and whether it joins two or more."""
    said = table.text("interconnect", "")
    pair = Text((table.number("n_gpus") == 2).astype(np.int32), ("", ":pair"))
    return said.joined(pair, lambda name, two: f"{name}{two}" if name.endswith("_pairwise_nvlink") else name)


def machine(system: "System", variant: str) -> "System":
    """*system* with the links of a row's variant (`variants`)."""
    name, _, pair = variant.partition(":")
    return with_interconnect(system, name, bool(pair))
