"""Both traces of a Diff in one Perfetto file: parallel tracks, an arrow from each operator to its partner."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, write_atomically
from foretrace.traces.formats.perfetto import encode_perfetto
from foretrace.traces.strings import StringColumn, aligned_codes
from foretrace.traces.trace import STRING_COLUMNS, Trace

from .diff import Diff

ENDINGS = (".pftrace", ".perfetto-trace")


def save_side_by_side(diff: Diff, path: str | Path) -> None:
    """Write both sides to *path*, each from its own first event, as processes of one timeline.

    Operators that were matched carry the predicted op id on both sides and are joined by a flow. Raises
    ForetraceError for an ending that is not Perfetto's, or where the file cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith(ENDINGS):
        raise ForetraceError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
    both, processes, flows = side_by_side(diff)
    write_atomically(path, encode_perfetto(both, processes, flows))


def side_by_side(diff: Diff) -> tuple[Trace, dict[int, str], NDArray[np.int64]]:
    """One trace with the events of both, the name of each rank's process, and per event its flow (0: none).

    The second trace's ranks come after the first's; a matched event's op id is that of its predicted partner.
    """
    first, second = diff.predicted, diff.measured
    shift = int(first.rank.max(initial=-1)) + 1
    heads, tails = diff.alignment.pairs[:, 0], diff.alignment.pairs[:, 1]
    op_id = second.op_id.copy()
    op_id[tails] = first.op_id[heads]
    flows = np.zeros(len(first) + len(second), np.int64)
    flows[heads] = heads + 1
    flows[len(first) + tails] = heads + 1
    columns: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in (first, second)]) for name in _NUMBERS}
    columns |= {name: _joined(getattr(first, name), getattr(second, name)) for name in STRING_COLUMNS}
    columns["start_s"] = np.concatenate([t.start_s - t.start_s.min(initial=np.inf) for t in (first, second)])
    columns["op_id"] = np.concatenate([first.op_id, op_id])
    columns["rank"] = np.concatenate([first.rank, second.rank + shift])
    columns["parent"] = np.concatenate([first.parent, np.where(second.parent >= 0, second.parent + len(first), -1)])
    both = Trace.from_columns(
        columns,
        title=f"{first.title or first.source} beside {second.title or second.source}",
        source="foreign",
        system=second.system or first.system,
        model=first.model or second.model,
    )
    names = ("predicted", "measured") if first.source != second.source else ("first", "second")
    processes = {
        int(rank) + offset: f"{name}: {trace.title or trace.model or trace.source}, rank {rank}"
        for name, trace, offset in zip(names, (first, second), (0, shift), strict=True)
        for rank in np.unique(trace.rank)
    }
    return both, processes, flows


_NUMBERS = ("correlation", "external_id", "duration_s", "bytes_moved", "flops", "spread_s")


def _joined(a: StringColumn, b: StringColumn) -> StringColumn:
    codes = np.concatenate(aligned_codes(a, b))
    return StringColumn(codes.astype(np.int32), tuple(dict.fromkeys(a.values + b.values)))
