"""On what a measurement ran: the device, its settings, the software, and how busy the machine was before."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

BUSY = 0.5
"""Load average a core over which a machine is called busy."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "MALLOC_CONF", "LD_PRELOAD")
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def describe_environment(device: str) -> dict[str, Any]:
    """JSON values of what times depend on: names, versions, threads, precision flags, limits, load. SI units."""
    info: dict[str, Any] = {
        "device": cuda_name() if device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cores": usable_cores(),
    }
    with suppress(ImportError):
        import transformers

        info["transformers"] = transformers.__version__
    if (load := load_average()) is not None:
        info["load"] = load
    allocator = {name: os.environ[name] for name in _ALLOCATOR if os.environ.get(name)}
    info |= {"allocator": allocator} if allocator else {}
    return info | (_cuda() if device == "cuda" else _cpu())


def load_warnings(info: dict[str, Any]) -> list[str]:
    """A warning where the machine was busy before the measurement began."""
    load, cores = info.get("load"), info.get("cores")
    if load is None or not cores or load / cores <= BUSY:
        return []
    return [f"the machine was busy before: a load of {load:.1f} on {cores} cores"]


def usable_cores() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not say
        return os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that ran or waited, averaged over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def cpu_name() -> str:
    """The processor's own name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cuda_name() -> str:
    """The current CUDA device's own name."""
    return str(torch.cuda.get_device_name())


def _cpu() -> dict[str, Any]:
    info: dict[str, Any] = {"capability": torch.backends.cpu.get_cpu_capability()}
    if governor := _read(_CPU / "scaling_governor").strip():
        info["governor"] = governor
    for name, key in (("scaling_cur_freq", "clock_hz"), ("scaling_max_freq", "max_clock_hz")):
        with suppress(ValueError):
            info[key] = int(_read(_CPU / name)) * 1000  # the kernel says kHz
    return info


def _cuda() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    info: dict[str, Any] = {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "device_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "allocator_backend": torch.cuda.get_allocator_backend(),
        "host": cpu_name(),
    }
    with suppress(RuntimeError):  # set through torch's newer door, the old one does not answer
        info["tf32_matmul"] = torch.backends.cuda.matmul.allow_tf32
        info["tf32_cudnn"] = torch.backends.cudnn.allow_tf32
    asked = {"driver": "driver_version", "max_clock_hz": "clocks.max.sm", "max_memory_clock_hz": "clocks.max.mem"}
    asked |= {"power_limit_w": "power.limit", "persistence": "persistence_mode", "mig": "mig.mode.current"}
    for (key, _), text in zip(asked.items(), query_nvidia_smi(tuple(asked.values())), strict=False):
        if key.endswith("_hz"):
            with suppress(ValueError):
                info[key] = float(text) * 1e6
        elif key.endswith("_w"):
            with suppress(ValueError):
                info[key] = float(text)
        elif text and not text.startswith("["):  # "[N/A]"
            info[key] = text
    return info


@cache
def device_id() -> str:
    """What nvidia-smi calls the current CUDA device, whatever CUDA_VISIBLE_DEVICES renames."""
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return str(torch.cuda.current_device()) if uuid is None else f"GPU-{uuid}".replace("GPU-GPU-", "GPU-")


def query_nvidia_smi(fields: tuple[str, ...]) -> list[str]:
    """The values of *fields* for the current device as text; empty where nvidia-smi is not there or refuses."""
    command = ["nvidia-smi", "-i", device_id(), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")] if done.stdout.strip() else []


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
