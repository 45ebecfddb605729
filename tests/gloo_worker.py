"""One of two real processes: runs a parallelised model over gloo and writes down the collectives it issues.

python gloo_worker.py CASE RANK STORE OUT        (STORE: a file both share; OUT: JSON, a list of [name, bytes, ranks])
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
from distributed_models import CASES

WORLD = 2


class Listener(TorchDispatchMode):
    """Notes every collective on plain tensors; counts bytes on its own, apart from the code under test."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t.__module__.startswith("torch.distributed.") for t in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith(("c10d.", "_c10d_functional.")) and "wait_tensor" not in name and "_wrap" not in name:
            self.heard.append((name, _bytes(name, args, out), _ranks(func, args)))
        return out


def _bytes(name: str, args: Any, out: Any) -> int:
    if "all_gather" in name:
        return _size(out)
    if "allgather" in name:
        return _size(args[0])
    if name.startswith("c10d._reduce_scatter"):
        return _size(args[1])
    return _size(args[0])


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _ranks(func: Any, args: Any) -> int:
    names = [a.name for a in func._schema.arguments]
    if "group_name" in names:
        group = args[names.index("group_name")]
        return (_resolve_process_group(group) if isinstance(group, str) else group).size()
    return dist.ProcessGroup.unbox(args[names.index("process_group")]).size()


def main(case: str, rank: str, store: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=WORLD, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs, step = CASES[case](device="cpu")
    for _ in range(3):  # the first steps set things up
        step(model, *inputs)
        model.zero_grad()
    with Listener() as listener:
        step(model, *inputs)
    Path(out).write_text(json.dumps(listener.heard))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
