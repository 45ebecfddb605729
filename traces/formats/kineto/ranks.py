"""A folder of Kineto files, one per rank, as one Trace on one clock."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces.formats.record_functions import read_runs
from foretrace.traces.formats.unpack import Progress, Source
from foretrace.traces.memory import KEY, MemoryLine, memory_line, thin_memory
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import COLUMNS, MAX_EVENTS, Trace

from .read import read_source

ENDINGS = (".json", ".json.gz")
MAX_APART_S = 3600.0  # between the first events of the ranks of one run
_RANK = re.compile(r"rank[^0-9a-z]?(\d{1,9})(?!\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<!\d)(\d{1,6})(?!\d)")


def is_folder(path: Path) -> bool:
    """Whether *path* is a folder with JSON files in it."""
    return path.is_dir() and bool(_files(path))


def read_folder(path: Path, progress: Progress | None = None) -> Trace:
    """All ranks in the JSON files of the folder *path*, on one clock.

    A file's rank is what its distributedInfo says, else the number in its name (``rank3.json``, ``trace_3.json.gz``),
    else the lowest that is free. The clocks of the files are taken as they are; where the ranks would then begin more
    than `MAX_APART_S` apart each begins at 0, and a warning says so. Files that hold no trace are left out, with a
    warning. Correlations and external ids are counted on from rank to rank, so that they stay apart. Raises FormatError
    where two files have one rank, naming both, where one has several, and where no file can be read.
    """
    files = _files(path)
    sizes = [max(f.stat().st_size, 1) for f in files]
    traces: dict[Path, Trace] = {}
    warnings: list[str] = []
    failed: FormatError | None = None
    for i, file in enumerate(files):
        done, size = sum(sizes[:i]), sizes[i]

        def tell(fraction: float, done: int = done, size: int = size) -> None:
            if progress is not None:
                progress((done + size * fraction) / sum(sizes))

        try:
            traces[file] = _read(file, tell)
        except FormatError as error:
            failed = failed or error
            warnings.append(f"{file.name}: left out: {str(error).removeprefix(f'{file}: ')}")
    if not traces:
        raise failed or FormatError(f"{path}: no JSON file in this folder")
    if sum(map(len, traces.values())) > MAX_EVENTS:
        raise FormatError(f"{path}: more than the {MAX_EVENTS} events that are read; give fewer ranks")
    return _merge(path, _by_rank(traces), warnings)


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.name.lower().endswith(ENDINGS) and f.is_file())


def _read(file: Path, progress: Progress) -> Trace:
    try:
        with file.open("rb") as stream:

            def source() -> Source:
                stream.seek(0)
                return Source(stream, str(file), progress)

            return read_source(source)
    except OSError as error:
        raise FormatError(f"cannot read {file}: {error.strerror or error}") from error


def _by_rank(traces: dict[Path, Trace]) -> dict[int, tuple[Path, Trace]]:
    """The traces by their rank, lowest first. Raises FormatError for two of one rank."""
    numbered = _numbers_in_names(list(traces))
    found: dict[int, tuple[Path, Trace]] = {}
    unnumbered: list[Path] = []
    for file, trace in traces.items():
        if np.ptp(trace.rank) if len(trace) else False:
            raise FormatError(f"{file}: has several ranks itself; expected one file per rank: give that file alone")
        rank = _own_rank(trace)
        if rank is None:
            rank = numbered.get(file)
        if rank is None:
            unnumbered.append(file)
        elif rank in found:
            raise FormatError(f"{file}: rank {rank}, as {found[rank][0]} has; expected one file per rank")
        else:
            found[rank] = (file, trace)
    free = (rank for rank in range(len(traces) + max(found, default=0) + 1) if rank not in found)
    placed = {next(free): (file, traces[file]) for file in unnumbered}
    return dict(sorted((found | placed).items()))


def _own_rank(trace: Trace) -> int | None:
    distributed = trace.info.get("distributed")
    said = isinstance(distributed, dict) and type(distributed.get("rank")) is int
    return int(trace.rank[0]) if len(trace) and (said or trace.source != "foreign") else None


def _numbers_in_names(files: list[Path]) -> dict[Path, int]:
    """Ranks by "rank N" in the names, else by their last numbers where each name has one of its own."""
    ranks = {f: int(m[1]) for f in files if (m := _RANK.search(f.name))}
    if ranks:
        return ranks
    last = {f: int(found[-1]) for f in files if (found := _NUMBER.findall(f.name))}
    return last if len(set(last.values())) == len(files) > 1 else {}


def _merge(path: Path, ranks: dict[int, tuple[Path, Trace]], warnings: list[str]) -> Trace:
    traces = [trace for _, trace in ranks.values()]
    shifts, apart = _shifts([trace.info for trace in traces])
    if apart:
        warnings.append(f"the clocks of the ranks are {apart:.0f} s apart: each rank begins at 0")
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = [getattr(trace, name) for trace in traces]
        columns[name] = _joined(values) if isinstance(values[0], StringColumn) else np.concatenate(values)
    counts = [len(trace) for trace in traces]
    columns["rank"] = np.repeat(list(ranks), counts).astype(np.int32)
    columns["start_s"] = columns["start_s"] + np.repeat(shifts, counts)
    columns["parent"] = _counted_on(columns["parent"], counts, counts)
    for name in ("correlation", "external_id"):
        highest = [int(getattr(trace, name).max(initial=-1)) for trace in traces]
        columns[name] = _counted_on(columns[name], counts, [h + 1 for h in highest])
    info = _info(ranks, warnings, shifts)
    if runs := _function_runs(traces):
        info["record_functions"] = runs
    first = traces[0]
    return Trace.from_columns(columns, title=path.name, source=first.source, system=first.system, info=info)


def _joined(columns: list[StringColumn]) -> StringColumn:
    values = tuple(dict.fromkeys(v for c in columns for v in c.values))
    place = {v: i for i, v in enumerate(values)}
    codes = [np.array([place[v] for v in c.values], np.int32)[c.codes] for c in columns]
    return StringColumn(np.concatenate(codes), values)


def _counted_on(values: Any, counts: list[int], lengths: list[int]) -> Any:
    """Ids of one rank after another, those of each counted on from the *lengths* of the ranks before; -1 stays."""
    offsets = np.cumsum([0, *lengths[:-1]])
    return np.where(values >= 0, values + np.repeat(offsets, counts), -1)


def _function_runs(traces: list[Trace]) -> list[list[int]]:
    """What turns the counted-on external ids into record function ids again: the runs of each rank, moved with them."""
    runs: list[list[int]] = []
    offset = 0
    for trace in traces:
        highest = int(trace.external_id.max(initial=-1))
        given = trace.info.get("record_functions")
        own = read_runs(given) if given else np.array([[0, highest, 0]][: highest + 1], np.int64).reshape(-1, 3)
        runs += np.add(own, [offset, offset, -offset]).tolist()
        offset += highest + 1
    return runs if any(add for _, _, add in runs) else []


def _shifts(infos: list[dict[str, Any]]) -> tuple[list[float], float]:
    """Seconds to add to the times of each rank, and 0, or how far apart the clocks are where that is absurd."""
    if len(infos) == 1:
        return [0.0], 0.0
    base = [i if type(i := info.get("base_time_ns")) is int else 0 for info in infos]
    start = [float(s) if isinstance(s := info.get("start_us"), int | float) else 0.0 for info in infos]
    begun = [(b - base[0]) * 1e-9 + (s - start[0]) * 1e-6 for b, s in zip(base, start, strict=True)]
    shifts = [b - min(begun) for b in begun]
    return (shifts, 0.0) if max(shifts) <= MAX_APART_S else ([0.0] * len(infos), max(shifts))


def _info(ranks: dict[int, tuple[Path, Trace]], warnings: list[str], shifts: list[float]) -> dict[str, Any]:
    """What the files say of the run: that of the first rank, and per rank where they may differ; the memory is that
    of the rank that holds most."""
    infos = {rank: (file, trace.info) for rank, (file, trace) in ranks.items()}
    _, first = next(iter(infos.values()))
    kept = ("devices", "distributed", "schema_version", "base_time_ns", "start_us")
    info: dict[str, Any] = {key: first[key] for key in kept if key in first}
    info["files"] = {str(rank): file.name.encode(errors="replace").decode() for rank, (file, _) in infos.items()}
    other: dict[str, int] = {}
    for file, found in infos.values():
        warnings += [f"{file.name}: {w}" for w in found.get("warnings", [])]
        events = found.get("other_events")
        for phase, count in events.items() if isinstance(events, dict) else ():
            if type(count) is int:
                other[phase] = other.get(phase, 0) + count
    lines = [(line, shift) for (_, trace), shift in zip(ranks.values(), shifts, strict=True) if (line := _line(trace))]
    if lines:
        line, shift = max(lines, key=lambda found: found[0].peak)
        info[KEY] = thin_memory(line.time_s + shift, line.allocated_bytes)
    return {**info, "other_events": other, "warnings": warnings}


def _line(trace: Trace) -> MemoryLine | None:
    """The memory that *trace* carries, None where that is none, empty or unreadable."""
    try:
        line = memory_line(trace)
    except ForetraceError:
        return None
    return line if line is not None and len(line.time_s) else None
