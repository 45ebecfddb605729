"""Chakra files out: one a rank and the groups beside them, all of them or none."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from foretrace.ir import ForetraceError, without_collector
from foretrace.ir.files import stage_file

from .nodes import ChakraRank, ChakraTrace, check_nodes
from .read import groups_file, rank_files
from .wire import Encoder


def _quiet(_: str) -> None:
    pass


def save_chakra(trace: ChakraTrace, prefix: str | Path, progress: Callable[[str], None] = _quiet) -> list[Path]:
    """Write *trace* as ``PREFIX.RANK.et`` and ``PREFIX.groups.json``, and give these files (see `save_ranks`)."""
    return save_ranks(trace.ranks, trace.groups, prefix, progress)


def save_ranks(
    ranks: Iterable[ChakraRank],
    groups: Mapping[str, tuple[int, ...]],
    prefix: str | Path,
    progress: Callable[[str], None] = _quiet,
) -> list[Path]:
    """Write each of *ranks*, one in memory at a time, and the *groups*; either all files are there in the end, or none.

    *progress* is told of each file. Raises `GraphError` for dependencies that are a cycle or lead to no node,
    `ForetraceError` for what cannot be written, and where a rank of another run would be read with these.
    """
    prefix = Path(prefix)
    if not prefix.name or prefix.is_dir():
        raise ForetraceError(f"cannot write {prefix}: it is a folder, expected the start of a file's name")
    staged: dict[Path, Path] = {}
    try:
        for rank in ranks:
            target = prefix.with_name(f"{prefix.name}.{rank.rank}.et")
            if target in staged:
                raise ForetraceError(f"cannot write {target}: two ranks have the number {rank.rank}")
            progress(f"writing {target.name}")
            staged[target] = _stage(target, encode_rank(rank))
        target = groups_file(prefix)
        staged[target] = _stage(target, json.dumps({k: list(v) for k, v in groups.items()}).encode())
        _refuse_strangers(prefix, staged)
        for target, temporary in staged.items():
            temporary.replace(target)
    except (OSError, ValueError) as e:
        raise ForetraceError(f"cannot write {target}: {getattr(e, 'strerror', None) or e}") from e
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    return list(staged)


def encode_rank(rank: ChakraRank) -> bytes:
    """The file of one rank. Raises `GraphError` and `ForetraceError` as `save_ranks` does."""
    encoder = Encoder()
    with without_collector():
        check_nodes(rank.nodes)
        return b"".join([encoder.head(rank.version, rank.metadata), *map(encoder.node, rank.nodes)])


def _stage(target: Path, data: bytes) -> Path:
    if target.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    return stage_file(target, data)


def _refuse_strangers(prefix: Path, staged: Mapping[Path, Path]) -> None:
    """An older run of more ranks under the same prefix would be read as a part of this one."""
    try:
        there = rank_files(prefix)
    except ForetraceError:
        return
    others = sorted(set(there) - set(staged)) if not prefix.is_file() else []
    if others:
        raise ForetraceError(
            f"cannot write {prefix}: {others[0].name} of another run is there, and would be read with these ranks; "
            "remove it, or give another prefix"
        )
