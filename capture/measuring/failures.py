"""What went wrong while a model ran, in one line that names the place and the fix."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foretrace.ir import ForetraceError

_CUDA_ALLOCATION = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMGT]iB)")
_CPU_ALLOCATION = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
SMALLER = "take a smaller --batch or --seq, or replay it: that needs no device"


@contextmanager
def explained(what: str, device: str, execution: str = "eager") -> Iterator[None]:
    """Errors of a user's model, of torch's compiler and of a full memory become one `ForetraceError` about *what*."""
    try:
        yield
    except ForetraceError:
        raise
    except Exception as error:  # the model's own code: whatever it raises
        raise ForetraceError(_explanation(what, device, execution, error)) from error


def _explanation(what: str, device: str, execution: str, error: Exception) -> str:
    chain = list(_causes(error))
    names = {type(e).__name__ for e in chain}
    if full := next((e for e in chain if isinstance(e, torch.OutOfMemoryError)), None):
        asked = _CUDA_ALLOCATION.search(str(full))
        more = f": {asked[1]} more were asked for" if asked else ""
        return f"{what}: out of memory on {device}{more}{_cuda_memory()}; {SMALLER}"
    for e in chain:
        if found := _CPU_ALLOCATION.search(str(e)):
            return f"{what}: out of memory on cpu: {int(found[1]) / 1e9:.1f} GB more were asked for; {SMALLER}"
    if "InvalidCxxCompiler" in names:
        return f"{what}: --execution {execution} on a CPU needs a C++ compiler (g++ or clang++), and none is found here"
    last = chain[-1]
    reason = f"{type(last).__name__}: {_first_line(last)}"
    if execution == "cudagraph":
        return f"{what} failed as a CUDA graph: {reason}; what waits for the device cannot be in one, measure it eager"
    if any(type(e).__module__.startswith(("torch._dynamo", "torch._inductor")) for e in chain):
        return f"{what} could not be compiled: {reason}"
    return f"{what} failed on {device}: {reason}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """*error* and what it was raised from, the innermost last."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        inner = getattr(found, "inner_exception", None)  # torch's compiler keeps it there
        found = inner if isinstance(inner, BaseException) else found.__cause__


def _cuda_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.max_memory_allocated()
    return f", {held / 1e9:.1f} of {total / 1e9:.1f} GB were held at most, {free / 1e9:.1f} GB are free"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
