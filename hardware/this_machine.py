"""`this-machine`: the computer we run on, its cores and clock detected, its rates measured and cached.

The cache is ``this-machine.yaml`` in ``$FORETRACE_CACHE``, else ``$XDG_CACHE_HOME/foretrace``, else
``~/.cache/foretrace``; its first line is the key (CPU, cores, numpy version), and a file that has
another key, or that is damaged, is measured again.
"""

import contextlib
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from foretrace.ir.errors import ForetraceError

from .document import Document, dump, parse_document, read_document
from .quantity import format_quantity
from .schema import Accelerator

BUDGET_S: Final = 0.4
"""Seconds that each of the three measurements may take (one repeat may overrun it)."""
_VERSION: Final = 1
_MATMUL_SIZE: Final = 1024
_COPY_BYTES: Final = 256 << 20
_MEASURED: Final = "measured here with numpy: "


def describe_this_machine() -> Document:
    """This computer as an accelerator document: from the cache, else measured (about 2 s) and cached."""
    path, key = cache_path(), cache_key()
    with contextlib.suppress(ForetraceError, OSError, UnicodeDecodeError, ValidationError):
        with path.open(encoding="utf-8") as stream:
            known = stream.readline(2000).rstrip("\n") == key
        if known:
            document = read_document(path)
            Accelerator.model_validate(document.data)
            return document
    text = f"{key}\n{dump(measure())}"
    with contextlib.suppress(OSError):  # a read-only home: measured again next time
        _write(path, text)
    return parse_document(text.encode(), str(path))


def cache_path() -> Path:
    """Where the measured description is kept."""
    home = os.environ.get("FORETRACE_CACHE")
    if home:
        return Path(home) / "this-machine.yaml"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "foretrace" / "this-machine.yaml"


def cache_key() -> str:
    """The cache's first line: what a measurement depends on."""
    import numpy as np

    return f"# this-machine {_VERSION}: {cpu_model()}, {cpu_cores()} cores, numpy {np.__version__}"


def measure() -> dict[str, Any]:
    """This computer as the keys of an accelerator file."""
    cores, model = cpu_cores(), cpu_model()
    clock, clock_source = cpu_clock(model)
    rates = {name: format_quantity(matmul_rate(name), "compute rate") for name in ("float32", "float64")}
    cache = _read_first("/sys/devices/system/cpu/cpu0/cache/index3/size")
    size = re.fullmatch(r"([0-9]+)K", cache)
    machine = platform.machine().lower()
    description: dict[str, Any] = {
        "name": "this-machine",
        "title": model,
        "kind": "cpu",
        "vendor": next((v for v in ("Intel", "AMD", "Apple") if v.lower() in model.lower()), "unknown"),
        "measured": True,
        "generation": "x86" if machine in ("x86_64", "amd64", "i686") else machine or "unknown",
        "cores": cores,
        "clock": format_quantity(clock, "frequency"),
        "compute": {
            "matrix": rates,
            "vector": dict(rates),
            "emulated_with": dict.fromkeys(("bfloat16", "float16", "tf32", "float8_e4m3"), "float32"),
        },
        "memory": {
            "capacity": format_quantity(memory_bytes(), "size", digits=None),
            "bandwidth": format_quantity(copy_bandwidth(cores), "bandwidth"),
        },
        "launch_floor": "0.5 us",
        "sources": {
            "cores": "detected: CPUs that this process may use (affinity, cgroup limit)",
            "clock": clock_source,
            "compute": f"{_MEASURED}matmul of {_MATMUL_SIZE} x {_MATMUL_SIZE}, best repeat; one rate for all units",
            "memory.capacity": "detected: physical memory, or the cgroup limit",
            "memory.bandwidth": f"{_MEASURED}copy by all cores, bytes read and written, best repeat",
            "launch_floor": "estimate: the body of a very small operator, under 1 us",
        },
    }
    if size:
        description["cache"] = {"level": "L3", "capacity": f"{size[1]} KiB"}
        description["sources"]["cache"] = "detected: /sys/devices/system/cpu/cpu0/cache"
    return description


# --- detection ------------------------------------------------------------------------------------


def cpu_cores() -> int:
    """CPUs that this process may use: its affinity, and the cgroup's quota rounded up."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    quota, _, period = _read_first("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _read_first("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read_first("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        allowed = min(allowed, -(-int(quota) // int(period)))
    return max(allowed, 1)


def cpu_model() -> str:
    """The CPU's name on one line."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read_file("/proc/cpuinfo"), re.MULTILINE)
    name = names[0] if names else _sysctl("machdep.cpu.brand_string") or platform.processor()
    return " ".join((name or platform.machine() or "unknown CPU").split())[:200]


def cpu_clock(model: str) -> tuple[float, str]:
    """The clock in Hz and where it was read."""
    kilohertz = _read_first("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if kilohertz.isdigit() and int(kilohertz):
        return int(kilohertz) * 1e3, "detected: cpufreq, greatest clock"
    running = re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", _read_file("/proc/cpuinfo"), re.MULTILINE)
    if running and max(map(float, running)) > 0:
        return max(map(float, running)) * 1e6, "detected: /proc/cpuinfo"
    if (hertz := _sysctl("hw.cpufrequency")).isdigit() and int(hertz):
        return float(hertz), "detected: sysctl hw.cpufrequency"
    if named := re.search(r"@ ([0-9.]+)GHz", model):
        return float(named[1]) * 1e9, "detected: the CPU's name"
    return 3e9, "estimate: this system does not say; 3 GHz is usual"


def memory_bytes() -> float:
    """Physical memory, or the cgroup's limit where that is less; 8 GiB where the system does not say."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = 8 << 30
    limit = _read_first("/sys/fs/cgroup/memory.max")
    return float(min(physical, int(limit)) if limit.isdigit() and int(limit) else physical)


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _read_first(path: str) -> str:
    return _read_file(path).strip().partition("\n")[0]


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


# --- measurement ----------------------------------------------------------------------------------


def matmul_rate(dtype: str) -> float:
    """FLOP/s of numpy's matmul in *dtype*, best repeat."""
    import numpy as np

    left = np.full((_MATMUL_SIZE, _MATMUL_SIZE), 0.5, dtype)
    right, out = left.copy(), left.copy()
    return 2 * _MATMUL_SIZE**3 / _best_s(lambda: np.matmul(left, right, out=out))


def copy_bandwidth(threads: int) -> float:
    """Bytes/s read plus written by *threads* threads that copy arrays larger than the caches."""
    import numpy as np

    length = max(int(min(_COPY_BYTES, memory_bytes() / 16)) // threads, 1)
    pairs = [(np.zeros(length, np.uint8), np.ones(length, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = _best_s(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return 2 * length * threads / best


def _best_s(run: Callable[[], object]) -> float:
    """The shortest of as many repeats as fit `BUDGET_S`, after one that warms up; seconds."""
    run()
    best, end = float("inf"), time.perf_counter() + BUDGET_S
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return max(best, 1e-9)


def _write(path: Path, text: str) -> None:
    """Write *text* whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
