"""Memory events: how much was allocated when, on the device if they name one, else on the host."""

from array import array

import numpy as np

from foretrace.traces.memory import thin_memory

from .events import Event, as_float, as_integer

HOST = -1


class Allocations:
    """Takes in events called ``[memory]``; `line` is the memory of the device that holds most."""

    def __init__(self) -> None:
        self._devices: dict[int, tuple[array[float], array[float], array[float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._devices)

    def add(self, event: Event) -> None:
        """The allocation or release in *event*; one without a time or an amount is passed over."""
        args = event.args
        if not np.isfinite(event.ts):
            return
        allocated = as_float(args.allocated)
        if not allocated >= 0 and args.moved_old == -1:
            return
        device = HOST if str(args.device_type).lower() in ("0", "cpu") else as_integer(args.device_id)
        columns = self._devices.setdefault(device, (array("d"), array("d"), array("d")))
        for column, value in zip(columns, (event.ts, allocated, args.moved_old), strict=True):
            column.append(value)

    def line(self, base_us: float) -> dict[str, list[float]]:
        """What goes into ``info["memory"]``; times count from *base_us*.

        Without totals (old versions) the changes are summed, the least of the sums taken as nothing allocated.
        """
        lines = [self._line(device) for device in sorted(self._devices) if device != HOST or len(self._devices) == 1]
        time, allocated = max(lines, key=lambda line: float(line[1].max()))
        return thin_memory((time - base_us) * 1e-6, allocated)

    def _line(self, device: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
        time, allocated, change = (np.frombuffer(column, np.float64) for column in self._devices[device])
        order = np.argsort(time, kind="stable")
        time, allocated = time[order], allocated[order]
        if not (allocated >= 0).all():
            total = np.cumsum(change[order])
            allocated = total - total.min(initial=0.0)
        return time, allocated
