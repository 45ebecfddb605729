"""What torch.distributed's own operators say: who takes part, how many bytes, and which tensors are read and written.

Both families are read: the functional collectives that DTensor issues (``_c10d_functional``) and the in-place ones of a
process group (``c10d``) that FSDP2 and pipelines call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

SAME = "what other ranks send of whole numbers is unknown: each is taken to hold what this rank holds"
_NOT_LITERAL = frozenset({"process_group", "group_name", "group_size", "timeout", "async_op", "sparse_indices"})
_PEER = ("dst", "src")


@dataclass(frozen=True, slots=True)
class Collective:
    """One call of a collective: the tensors it reads and those it fills, and its attributes in the Graph."""

    reads: list[torch.Tensor]
    writes: list[torch.Tensor]
    attributes: dict[str, Any]


def collective_of(
    function: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any, groups: Mapping[str, str]
) -> Collective:
    """What the call *function*(*args*, **kwargs*), which gave *out*, is as a collective.

    ``bytes`` is the whole buffer: what is summed, or all that is gathered, scattered or exchanged. ``ranks`` is the
    size of the group, ``stride`` the distance of its neighbouring members in global ranks (``members`` where there is
    no one distance), ``base`` the first of them, ``group`` the mesh dimension's name. A send or receive is between two
    ranks, and has its ``peer``'s global rank.
    """
    given = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    reads, writes = _tensors_of(function, given, out)
    literals = {
        name: _plain(value)
        for name, value in given.items()
        if name not in _NOT_LITERAL and not _holds_tensors(value) and value is not None
    }
    sizes = [sum(t.numel() * t.element_size() for t in side) for side in (reads, writes)]
    members = members_of(given)
    name = group_name(given, groups)
    for end in _PEER:
        if (local := literals.pop(end, None)) is not None and "broadcast" not in function._schema.name:
            literals["peer"] = peer = members[local]
            members = tuple(sorted((dist.get_rank(), peer)))
    literals = {n: v for n, v in literals.items() if v is not None and n != "tag"}
    return Collective(reads, writes, literals | {"bytes": max(sizes)} | placement(members, name))


def _tensors_of(function: Any, given: dict[str, Any], out: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors a collective reads, and those it fills: outputs by argument, in place, or as results."""
    namespace, _, name = function._schema.name.partition("::")
    to = [t for n, v in given.items() if n.startswith("out") for t in leaves(v)]
    ins = [t for n, v in given.items() if not n.startswith("out") for t in leaves(v)]
    if namespace != "c10d":
        return ins, leaves(out)
    if name in ("send", "barrier", "monitored_barrier_"):
        return ins, []
    if name.startswith("recv"):
        return [], ins
    return ins, to or ins


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors in *value*, lists of lists included."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in leaves(v)] if isinstance(value, list | tuple) else []


def _holds_tensors(value: Any) -> bool:
    return bool(leaves(value)) or (isinstance(value, list | tuple) and not all(isinstance(v, int) for v in value))


def _plain(value: Any) -> Any:
    """An argument that an attribute can hold, None for an object (torch does not unwrap a process group's ReduceOp)."""
    if isinstance(value, list | tuple):
        return tuple(value) or None
    return value if isinstance(value, int | float | str) else None


def _process_group(given: dict[str, Any]) -> Any:
    group = given.get("process_group")
    if group is not None:
        return dist.ProcessGroup.unbox(group) if not isinstance(group, dist.ProcessGroup) else group
    name = given["group_name"]
    return name if isinstance(name, dist.ProcessGroup) else distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined]


def members_of(given: dict[str, Any]) -> tuple[int, ...]:
    """The global ranks of the group that a collective names, in order."""
    return tuple(dist.get_process_group_ranks(_process_group(given)))


def group_name(given: dict[str, Any], groups: Mapping[str, str]) -> str:
    """What the group is called: its mesh dimension by *groups*, ``world`` for all ranks, else torch's description."""
    group = _process_group(given)
    if (known := groups.get(group.group_name)) is not None:
        return known
    description = str(group.group_desc)
    return "world" if description == "default_pg" else description.removeprefix("mesh_")


def placement(members: Sequence[int], name: str) -> dict[str, Any]:
    """The attributes that say where a group's *members* are among all ranks."""
    steps = {b - a for a, b in pairwise(members)} or {1}
    where: dict[str, Any] = {"stride": steps.pop()} if len(steps) == 1 else {"members": tuple(members)}
    return {"ranks": len(members), **where, "base": members[0], "group": name}


def assume_peers(function: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
    """Fill the whole-number results of a collective, which the fake group leaves as they are, as if every rank held
    what this one holds: token counts of an expert exchange. Whether there were any."""
    given = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    reads, writes = _tensors_of(function, given, out)
    real = [(r, w) for r, w in zip(reads, writes, strict=False) if not r.is_meta and not w.is_meta]
    if not real:
        return False
    members = members_of(given)
    me = members.index(dist.get_rank()) if dist.get_rank() in members else 0
    name = function._schema.name.partition("::")[2]
    for read, write in real:
        if "alltoall" in name or "all_to_all" in name:
            chunk = read.reshape(len(members), -1)[me]
            write.copy_(chunk.expand(len(members), -1).reshape(write.shape))
        elif "gather" in name:
            write.copy_(read.expand(len(members), *read.shape).reshape(write.shape))
        elif "reduce_scatter" in name:
            write.copy_(read.reshape(len(members), -1)[me].reshape(write.shape) * len(members))
        elif "all_reduce" in name or "allreduce" in name:
            write.copy_(read * len(members) if given.get("reduce_op") == "sum" else read)
        else:
            write.copy_(read)
    return True
