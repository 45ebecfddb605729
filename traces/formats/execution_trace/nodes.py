"""The nodes of a PyTorch execution trace in columns, whatever its schema."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError, without_collector
from foretrace.traces.formats.shapes import shape_text
from foretrace.traces.formats.text_stream import CutOffError
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_EVENTS

from .json_stream import JsonStream

FRAME: Final = "[pytorch|profiler|execution_trace|"  # the process and its threads, no events
BACKWARD_SCOPE: Final = 1  # torch's RecordScope::BACKWARD_FUNCTION
USER_SCOPE: Final = 7  # RecordScope::USER_SCOPE, a record_function of the user's
MAX_NUMBER: Final = 1 << 62
_NUMBERS: Final = {"rf_id": 0, "seq_id": -1, "scope": 0, "tid": 0}
_VIEW: Final = re.compile(r"->.*\(\w+\)")  # what is returned shares an input's memory and nothing is written
_SAID: Final = frozenset([*_NUMBERS, "op_schema"])
_MEMORY: Final = ("aten::empty", "aten::new_empty")  # memory that nothing is written to
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExecutionNodes:
    """What a PyTorch execution trace says, a row a node in the order in which nodes began.

    `parent` is a row, -1 none. `tensor_bytes` counts each tensor that an operator names once; a view's are 0.
    """

    head: dict[str, Any]
    name: StringColumn
    shapes: StringColumn
    parent: Ints
    record_function: Ints  #: joins to Kineto; -1 unknown
    sequence: Ints  #: joins a backward node to its forward one; -1 unknown
    scope: Ints
    thread: Ints
    tensor_bytes: NDArray[np.float64]
    warnings: tuple[str, ...]


def read_nodes(path: Path) -> ExecutionNodes:
    """The nodes of the execution trace at *path*, gzipped or not, the file held a node at a time.

    Reads schema 1.0.x (parent, inputs and input_shapes apart) and later (ctrl_deps, attrs). Nodes that are not sound
    are left out and counted in `warnings`; of a file that is cut off what came before the cut is read. Raises
    FormatError where no node is sound or the file is no such trace.
    """
    stream = JsonStream(path, "nodes")
    unsound: Counter[str] = Counter()
    rows: list[tuple[Any, ...]] = []
    cut = ""
    try:
        with without_collector():
            rows.extend(_sound(stream, path, unsound))
    except CutOffError as error:
        cut = f"{error}; {len(rows)} nodes before the cut are read"
        if not rows:
            raise
    if not stream.found:
        keys = ", ".join(list(stream.head)[:8]) or "none"
        raise FormatError(f"{path}: no list of nodes (top-level keys: {keys}): not a PyTorch execution trace")
    kept = _kept(rows, path, unsound)
    ids, above, record, sequence, scope, thread, size = (
        np.array([row[i] for row in kept], np.int64) for i in (0, 1, 4, 5, 6, 7, 8)
    )
    parent = _parents(ids, above, unsound)
    return ExecutionNodes(
        stream.head,
        StringColumn.of(row[2] for row in kept),
        StringColumn.of(row[3] for row in kept),
        parent,
        np.where(record > 0, record, -1),
        sequence,
        scope,
        thread,
        size.astype(np.float64),
        (*([cut] if cut else []), *_counted(unsound)),
    )


def _kept(rows: list[tuple[Any, ...]], path: Path, unsound: Counter[str]) -> list[tuple[Any, ...]]:
    """The *rows* by id, without frames and without those that have the id of another."""
    rows.sort(key=lambda row: row[0])
    fresh = (np.diff(np.array([row[0] for row in rows], np.int64), prepend=-1) > 0).tolist()
    unsound["nodes with the id of another: left out"] += fresh.count(False)
    kept = [row for row, first in zip(rows, fresh, strict=True) if first and not row[2].startswith(FRAME)]
    if not kept:
        reasons = "".join(f"; {reason}" for reason in _counted(unsound))
        raise FormatError(f"{path}: no sound node; record it with ExecutionTraceObserver around a whole step{reasons}")
    return kept


def _counted(unsound: Counter[str]) -> list[str]:
    return [f"{count} {reason}" for reason, count in sorted(unsound.items()) if count]


def _sound(stream: JsonStream, path: Path, unsound: Counter[str]) -> Iterator[tuple[Any, ...]]:
    """(id, parent's id, name, shapes, rf_id, seq_id, scope, tid, bytes of tensors) of each sound node."""
    shared: dict[str, str] = {}
    share: Callable[[str], str] = lambda text: shared.setdefault(text, text)  # noqa: E731
    count = 0
    for node in stream:
        count += 1
        if count > MAX_EVENTS:
            raise FormatError(f"{path}: more than the {MAX_EVENTS} nodes that are read")
        if type(node) is not dict:
            unsound["nodes that are not objects: left out"] += 1
            continue
        number, name = node.get("id"), node.get("name")
        if type(number) is not int or not 0 <= number < MAX_NUMBER or not isinstance(name, str):
            unsound["nodes without a readable id or name: left out"] += 1
            continue
        said = _attributes(node)
        values = [v if type(v := said.get(key)) is int and abs(v) < MAX_NUMBER else d for key, d in _NUMBERS.items()]
        shapes = _part(node, "inputs", "shapes", "input_shapes")
        yield (number, _above(node), share(name), share(shape_text(shapes)), *values, _tensor_bytes(node, said))


def _attributes(node: dict[str, Any]) -> dict[str, Any]:
    """The node's attributes by name, which schema 1.0.1 writes into the node itself."""
    attrs = node.get("attrs")
    if not isinstance(attrs, list):
        return node
    return {a["name"]: a.get("value") for a in attrs if type(a) is dict and str(a.get("name")) in _SAID}


def _part(node: dict[str, Any], side: str, key: str, old: str) -> Any:
    value = node.get(side)
    return value.get(key) if isinstance(value, dict) else node.get(old)


def _above(node: dict[str, Any]) -> int:
    above = node.get("ctrl_deps", node.get("parent"))
    if isinstance(above, list) and above:
        above = above[0]
    return above if type(above) is int and 0 <= above < MAX_NUMBER else -1


def _tensor_bytes(node: dict[str, Any], said: dict[str, Any]) -> int:
    """Bytes of the tensors among inputs and outputs, each once; 0 for a view or mere memory."""
    schema = said.get("op_schema")
    if node["name"].startswith(_MEMORY) or (isinstance(schema, str) and _VIEW.search(schema)):
        return 0
    sizes: dict[int, int] = {}
    for side in ("inputs", "outputs"):
        values = node.get(side)
        _measure(values.get("values") if isinstance(values, dict) else values, sizes, 0)
    return min(sum(sizes.values()), MAX_NUMBER)


def _measure(values: Any, sizes: dict[int, int], depth: int) -> None:
    """Add to *sizes* the bytes of each tensor, [id, storage, offset, elements, bytes each, device], in *values*."""
    if not isinstance(values, list) or depth > 8:
        return
    for v in values:
        if type(v) is not list:
            continue
        if len(v) == 6 and isinstance(v[5], str) and all(type(n) is int for n in v[:5]):
            sizes[v[0]] = max(v[3], 0) * max(v[4], 0)
        else:
            _measure(v, sizes, depth + 1)


def _parents(ids: Ints, above: Ints, unsound: Counter[str]) -> Ints:
    """Rows of the parents. One that began later than its child is none: so there are no circles."""
    at = np.minimum(np.searchsorted(ids, above), len(ids) - 1)
    found = ids[at] == above
    later = found & (above >= ids)
    unsound["nodes whose parent began after them: taken as having none"] += int(later.sum())
    return np.where(found & ~later, at, -1)
