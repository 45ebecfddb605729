"""Power, clocks and temperature while something runs, where the device reports them."""

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import device_id

PERIOD_S = 0.05
MAX_SAMPLES = 200  # kept in a trace
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_SMI_FIELDS = {
    "power_w": ("power.draw.instant", 1.0),
    "clock_hz": ("clocks.sm", 1e6),
    "memory_clock_hz": ("clocks.mem", 1e6),
    "temperature_c": ("temperature.gpu", 1.0),
}
Reading = dict[str, float]
Reader = Callable[[], Reading]


@dataclass
class Samples:
    """Readings over time, seconds from the first."""

    time_s: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def add(self, at: float, reading: Reading) -> None:
        """Append *reading*, taken at *at* seconds on a steady clock."""
        if reading:
            self.time_s.append(at)
            self.readings.append(reading)

    def to_info(self) -> dict[str, Any]:
        """``{"samples": {"time_s": [...], "power_w": [...]...}, "power_w": median...}``; empty without a reading."""
        if not self.readings:
            return {}
        step = -(-len(self.readings) // MAX_SAMPLES)
        keys = [k for k in self.readings[0] if all(k in r for r in self.readings)]
        columns = {k: [r[k] for r in self.readings] for k in keys}
        times = [round(t - self.time_s[0], 4) for t in self.time_s]
        samples = {"time_s": times[::step]} | {k: v[::step] for k, v in columns.items()}
        return {"samples": samples} | {k: statistics.median(v) for k, v in columns.items()}


@contextmanager
def sampled(device: str, period_s: float = PERIOD_S) -> Iterator[Samples]:
    """Sample *device* from a thread of its own while the context is open; nothing where it reports nothing."""
    samples, done = Samples(), threading.Event()
    source = _cuda_reader(period_s) if device == "cuda" else _cpu_reader()
    if source is None:
        yield samples
        return
    read, close = source

    def keep_reading() -> None:
        last = False
        while not last:
            last = done.wait(period_s)
            with suppress(Exception):  # a device that stops answering costs its samples, never the measurement
                samples.add(time.perf_counter(), read())

    thread = threading.Thread(target=keep_reading, name="foretrace-sampling", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join(timeout=2)
        close()  # ends a read that still waits
        thread.join(timeout=2)


Source = tuple[Reader, Callable[[], None]]


def _cpu_reader() -> Source | None:
    """The package's power from the energy that it counts (RAPL), where that is readable."""
    try:
        last = [time.perf_counter(), int(_RAPL.read_text())]
    except (OSError, ValueError):
        return None

    def read() -> Reading:
        now, energy = time.perf_counter(), int(_RAPL.read_text())
        seconds, microjoules = now - last[0], energy - last[1]
        last[:] = now, energy
        # the first reading, a counter that wrapped
        return {} if seconds < 1e-3 or microjoules < 0 else {"power_w": microjoules * 1e-6 / seconds}

    return read, lambda: None


def _cuda_reader(period_s: float) -> Source | None:
    """NVML where pynvml is importable, else one nvidia-smi that keeps printing."""
    with suppress(Exception):
        return _nvml_reader()
    with suppress(OSError):
        return _smi_reader(period_s)
    return None


def _nvml_reader() -> Source:
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(device_id().encode())

    def read() -> Reading:
        return {
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) * 1e-3,
            "clock_hz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
            "temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        }

    read()
    return read, pynvml.nvmlShutdown


def _smi_reader(period_s: float) -> Source:
    fields = ",".join(name for name, _ in _SMI_FIELDS.values())
    command = ["nvidia-smi", "-i", device_id(), f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(
        [*command, "-lms", str(int(period_s * 1000))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    lines = process.stdout

    def read() -> Reading:
        return parse_smi(lines.readline())

    def close() -> None:
        process.terminate()
        process.wait(timeout=5)
        lines.close()

    if not read():  # it takes a while to start, and says nothing where it is refused
        close()
        raise OSError("nvidia-smi reports nothing")
    return read, close


def parse_smi(line: str) -> Reading:
    """One line of nvidia-smi's answer; fields that the device does not report are left out."""
    reading: Reading = {}
    for (key, (_, unit)), text in zip(_SMI_FIELDS.items(), line.split(","), strict=False):
        with suppress(ValueError):
            reading[key] = float(text) * unit
    return reading
