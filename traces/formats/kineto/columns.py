"""Many events as few arrays: strings coded once per distinct value, what is not kept let go block by block."""

from collections.abc import Callable, Iterable
from itertools import compress, islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError
from foretrace.traces.kinds import DEVICE_KINDS, HOST_KINDS
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_EVENTS

from .events import NO_DIMS, Args, Event, as_float, as_integer

KINDS = {
    "cpu_op": "cpu_op",
    "operator": "cpu_op",
    "kernel": "kernel",
    "gpu_memcpy": "copy",
    "memcpy": "copy",
    "gpu_memset": "memset",
    "memset": "memset",
    "runtime": "launch",
    "cuda_sync": "sync",
    "user_annotation": "annotation",
    "gpu_user_annotation": "gpu_annotation",
    "python_function": "python",
    "trace": "span",
}
LAUNCHES = ("launch", "driver")
ELEMENT_BYTES = {
    **dict.fromkeys(["byte", "char", "bool", "unsigned char", "signed char", "uint8", "int8"], 1),
    **dict.fromkeys(["short", "half", "float16", "bfloat16", "int16"], 2),
    **dict.fromkeys(["int", "float", "float32", "int32"], 4),
    **dict.fromkeys(["long", "long int", "double", "float64", "int64", "complexfloat"], 8),
}  #: of the dtypes that profilers write beside collectives; float8_* have one too
_place = attrgetter("cat", "pid", "tid")
_device = attrgetter("device", "stream")
_name, _args, _dims, _hierarchy = map(attrgetter, ("name", "args", "dims", "hierarchy"))


class Codes(dict[Any, int]):
    """A code per distinct key, counted up as keys come."""

    def __missing__(self, key: Any) -> int:
        code = self[key] = len(self)
        return code

    def of(self, keys: Iterable[Any], count: int) -> NDArray[np.int32]:
        """The codes of *count* keys."""
        return np.fromiter(map(self.__getitem__, keys), np.int32, count)


class Columns:
    """Takes events in, block by block; `take` gives each column once and forgets it."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.count = 0
        self.names, self.dims, self.hierarchies = Codes(), Codes(), Codes()
        self.places, self.devices = Codes(), Codes()
        self._kinds: list[tuple[bool, bool]] = []  # per place: not on a device, not on the host
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, rows: list[Event]) -> None:
        """Append *rows*, complete events. Raises FormatError beyond `MAX_EVENTS`."""
        n = len(rows)
        self.count += n
        if self.count > MAX_EVENTS:
            raise FormatError(
                f"{self.label}: more than the {MAX_EVENTS} complete events that are read; record fewer steps"
            )
        args = list(map(_args, rows))
        place = self.places.of(map(_place, rows), n)
        block = {
            "start": _numbers("ts", rows, np.float64, as_float),
            "duration": _numbers("dur", rows, np.float64, as_float),
            "name": self.names.of(map(_name, rows), n),
            "place": place,
            "correlation": _numbers("correlation", args),
            "external": _numbers("external", args),
        }
        for i in np.flatnonzero(block["external"] < 0).tolist():
            if args[i].external_old >= 0:
                block["external"][i] = as_integer(args[i].external_old)
        for kind in map(_kind, islice((cat for cat, *_ in self.places), len(self._kinds), None)):
            self._kinds.append((kind not in DEVICE_KINDS, kind not in HOST_KINDS))
        issues, runs = np.array(self._kinds, np.bool_)[place].T
        block |= self._issued(args, issues)
        block |= self._ran(args, runs)
        for key, values in block.items():
            self._parts.setdefault(key, []).append(values)

    def _issued(self, args: list[Args], here: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """What only events that are not on a device have; nothing elsewhere than *here*."""
        args = list(compress(args, here.tolist()))
        n = len(args)
        dims = [bytes(d) if d is not NO_DIMS else b"" for d in map(_dims, args)]
        for i in [i for i, a in enumerate(args) if a.dims_old is not NO_DIMS]:
            dims[i] = dims[i] or bytes(args[i].dims_old)
        return {
            "dims": _spread(self.dims.of(dims, n), here, self.dims[b""]),
            "hierarchy": _spread(self.hierarchies.of(map(_hierarchy, args), n), here, self.hierarchies[""]),
            "sequence": _spread(_numbers("sequence", args), here, -1),
            "record_function": _spread(_numbers("record_function", args), here, -1),
        }

    def _ran(self, args: list[Args], here: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """What only events that are not on the host have."""
        args = list(compress(args, here.tolist()))
        moved = _numbers("moved", args)
        for i in [i for i, a in enumerate(args) if a.moved < 0 and (a.moved_old >= 0 or a.elements_in is not None)]:
            moved[i] = max(as_integer(args[i].moved_old), _collective_bytes(args[i]))
        return {
            "device": _spread(self.devices.of(map(_device, args), len(args)), here, self.devices[None, None]),
            "moved": _spread(moved, here, -1),
        }

    def take(self, key: str) -> NDArray[Any]:
        """The whole column *key*."""
        return np.concatenate(self._parts.pop(key))

    def take_strings(self, key: str, table: Codes, text: Callable[[Any], str] = str) -> StringColumn:
        """The column *key*, coded by *table*, whose keys become strings by *text*."""
        names = StringColumn.of(map(text, table))
        return StringColumn(names.codes[self.take(key)], names.values)

    def hosts(self) -> tuple[NDArray[np.int64], list[Any]]:
        """Per row the number of the process, -1 for what ran on a device; the ids of the processes. Takes nothing."""
        numbers = Codes()
        codes = [-1 if _kind(cat) in DEVICE_KINDS else numbers[pid] for cat, pid, _ in self.places]
        return np.array(codes, np.int64)[np.concatenate(self._parts["place"])], list(numbers)

    def threads(self, rows: NDArray[np.int64]) -> list[tuple[Any, Any]]:
        """Process and thread of each of the *rows*, as the file has them. Takes nothing."""
        places = list(self.places)
        return [places[i][1:] for i in np.concatenate(self._parts["place"])[rows].tolist()]

    def launching(self) -> int:
        """How many processes launch work."""
        return len({pid for cat, pid, _ in self.places if _kind(cat) in LAUNCHES})

    def launches(self) -> NDArray[np.bool_]:
        """Mask of the rows that launch work. Takes nothing."""
        launch: NDArray[np.bool_] = np.array([_kind(cat) in LAUNCHES for cat, *_ in self.places], np.bool_)
        place: NDArray[np.int32] = np.concatenate(self._parts["place"])
        return launch[place]

    def take_places(self, threads: dict[tuple[str, Any, Any], str]) -> tuple[StringColumn, StringColumn]:
        """The columns kind and stream: "gpu D stream S" for device work, "host TID" for host work, else from
        what *threads* calls processes and threads."""
        where = self.take("place").astype(np.int64) * len(self.devices) + self.take("device")
        used, codes = np.unique(where, return_inverse=True)
        places, devices = list(self.places), list(self.devices)
        keys = [(*places[i // len(devices)], *devices[i % len(devices)]) for i in used.tolist()]
        kinds = [_kind(cat) for cat, *_ in keys]
        many = len({pid for kind, (_, pid, *_) in zip(kinds, keys, strict=True) if kind in HOST_KINDS}) > 1

        def label(kind: str, pid: Any, tid: Any, device: Any, stream: Any) -> str:
            if kind in DEVICE_KINDS:
                return f"gpu {pid if device is None else device} stream {tid if stream is None else stream}"
            if kind in HOST_KINDS:
                return f"host {pid}/{tid}" if many else f"host {tid}"
            thread = threads.get(("thread_name", pid, tid), tid)
            return f"{threads.get(('process_name', pid, None), pid)} {thread}".strip()

        columns = (
            StringColumn.of(kinds),
            StringColumn.of(label(kind, *key[1:]) for kind, key in zip(kinds, keys, strict=True)),
        )
        kind, stream = (c.take(codes) for c in columns)
        return kind, stream


def _kind(category: str) -> str:
    low = category.lower()
    for ending, kind in (("_runtime", "launch"), ("_driver", "driver")):
        if low.endswith(ending):
            return kind
    return KINDS.get(low, low or "event")


def _collective_bytes(args: Args) -> int:
    """What a collective's kernel takes in or gives out, whichever is more."""
    dtype = str(args.dtype).lower().removeprefix("c10::")
    size = 1 if dtype.startswith("float8") else ELEMENT_BYTES.get(dtype, 0)
    return as_integer(max(as_integer(args.elements_in), as_integer(args.elements_out), 0) * size)


def _spread(values: NDArray[Any], here: NDArray[np.bool_], missing: int) -> NDArray[Any]:
    """*values* at the rows *here*, *missing* at all others."""
    if len(values) == len(here):
        return values
    column = np.full(len(here), missing, values.dtype)
    column[here] = values
    return column


def _numbers(
    key: str, objects: list[Any], dtype: type = np.int64, convert: Callable[[Any], Any] = as_integer
) -> NDArray[Any]:
    get = attrgetter(key)
    try:
        return np.fromiter(map(get, objects), dtype, len(objects))
    except OverflowError:  # an integer beyond 64 bits
        return np.fromiter((convert(get(o)) for o in objects), dtype, len(objects))
