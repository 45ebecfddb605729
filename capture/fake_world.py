"""A world of any size in one process: torch's *fake* process group, and no devices.

Collectives do nothing, meshes of any device are meshes of CPUs, FSDP2 takes parameters on meta, pipeline stages
do not ask their neighbours. All of torch that is changed for that is changed back when the world is closed.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard
from torch.overrides import TorchFunctionMode

from foretrace.ir import ForetraceError

from .plugins.base import replaced
from .rank_recorder import RankRecorder, local_of

MAX_WORLD = 1 << 20
_numbers = count(1)


class World:
    """A fake world while it is open: `meshes` are those that the user's code made of it, by their dimensions;
    `groups` says to what dimension a process group belongs, `owners` to what module a parameter of FSDP2's by its
    identity; `recorder` is told of memory taken and freed."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank
        self.number = next(_numbers)  # DTensor keeps what it found for a mesh: those of other worlds must not equal it
        self.meshes: list[dict[str, int]] = []
        self.groups: dict[str, str] = {}
        self.owners: dict[int, str] = {}
        self.recorder: RankRecorder | None = None

    def know(self, mesh: DeviceMesh) -> None:
        """Remember the dimensions of *mesh* and their groups."""
        if not mesh.mesh_dim_names:
            return
        self.meshes.append(dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True)))
        for group, name in zip(getattr(mesh, "_dim_group_names", ()), mesh.mesh_dim_names, strict=False):
            self.groups.setdefault(group, name)

    def placed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function* of FSDP2, what it does recorded as of the module whose parameters it is given."""

        def call(*args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder
            groups = [a for a in (*args, *kwargs.values()) if isinstance(a, list) and a and id(a[0]) in self.owners]
            if recorder is None or not groups:
                return function(*args, **kwargs)
            with recorder.inside(self.owners[id(groups[0][0])], backward=function.__name__ == "foreach_reduce"):
                return function(*args, **kwargs)

        return call

    def describe(self) -> dict[str, str]:
        """What the graph's metadata says of the world."""
        facts = {"world_size": str(self.size), "rank": str(self.rank)}
        if self.meshes:
            facts["mesh"] = ",".join(f"{n}={size}" for n, size in max(self.meshes, key=len).items())
        return facts


@contextmanager
def fake_world(world_size: int, rank: int = 0) -> Iterator[World]:
    """This process is *rank* of *world_size* while the context is open; nothing is sent anywhere.

    Raises `ForetraceError` where a process group exists already, or the rank is none of the world.
    """
    if not 1 <= world_size <= MAX_WORLD:
        raise ForetraceError(f"--world-size {world_size}: expected at least 1 and at most {MAX_WORLD}")
    if not 0 <= rank < world_size:
        raise ForetraceError(f"--rank {rank}: a world of {world_size} has ranks 0 to {world_size - 1}")
    if not dist.is_available():
        raise ForetraceError(f"torch {torch.__version__} is built without torch.distributed: install one with it")
    if dist.is_initialized():
        raise ForetraceError("this process has a process group already: call torch.distributed.destroy_process_group()")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world = World(world_size, rank)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    devices = {dist.Backend.FAKE: [*dist.Backend.backend_capability[dist.Backend.FAKE], "meta"]}
    with ExitStack() as stack:
        stack.enter_context(_updated(dist.Backend.backend_capability, devices))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        stack.callback(dist.destroy_process_group)
        stack.enter_context(_updated(os.environ, {n: str(v) for n, v in variables.items()}))
        stack.enter_context(replaced(dist, "init_process_group", _nothing()))
        for patch in _patches(world):
            stack.enter_context(patch)
        stack.enter_context(_NoDevices())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"torch\.")  # advice on running, which nobody does here
        yield world


class _NoDevices(TorchFunctionMode):
    """Every device but meta is the CPU, whose floats a recorder puts on meta."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _TO_DEVICE:
            return args[0]
        kwargs = {n: _here(v) if n == "device" else v for n, v in (kwargs or {}).items()}
        return func(*(_here(a) for a in args) if func is torch.Tensor.to else args, **kwargs)


_TO_DEVICE = frozenset({torch.Tensor.cuda, torch.Tensor.xpu})


def _here(device: Any) -> Any:
    """*device* if it is one that is here."""
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu"
    if isinstance(device, torch.device) or (isinstance(device, str) and device != "meta"):
        return device if torch.device(device).type == "meta" else "cpu"
    return device


def _no_fsdp1(*_: Any, **__: Any) -> None:
    raise ForetraceError(
        "FullyShardedDataParallel needs a real accelerator to flatten its parameters on: parallelise the module with "
        "torch.distributed.fsdp.fully_shard"
    )


def _nothing() -> Callable[..., None]:
    """A function in place of one that has no meaning here; a new one each time, as torch asks of its functions."""
    return lambda *_, **__: None


@contextmanager
def _updated(mapping: MutableMapping[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: mapping[name] for name in values if name in mapping}
    mapping.update(values)
    try:
        yield
    finally:
        for name in values:
            del mapping[name]
        mapping.update(before)


def _patches(world: World) -> Iterator[Any]:
    """What of torch.distributed looks at devices, told that there are none."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    make_mesh, allocate, free = DeviceMesh.__init__, _fsdp_param.alloc_storage, _fsdp_param.free_storage

    def mesh_of_cpus(self: DeviceMesh, device_type: str, *args: Any, **kwargs: Any) -> None:
        make_mesh(self, "cpu", *args, **kwargs)
        self._thread_id, self._hash = -world.number, None
        world.know(self)

    def alloc_storage(tensor: torch.Tensor) -> None:
        if world.recorder is not None and tensor.untyped_storage().size() == 0:
            world.recorder.allocate(tensor)
        allocate(tensor)

    def free_storage(tensor: torch.Tensor) -> None:
        if world.recorder is not None:
            world.recorder.free(tensor)
        free(tensor)

    yield replaced(DeviceMesh, "__init__", mesh_of_cpus)
    yield replaced(_fsdp_param_group.FSDPParamGroup, "_validate_no_meta_params", _nothing())
    yield replaced(_fsdp_param, "alloc_storage", alloc_storage)
    yield replaced(_fsdp_param_group, "alloc_storage", alloc_storage)
    yield replaced(_fsdp_param, "free_storage", free_storage)
    yield replaced(FullyShardedDataParallel, "__init__", _no_fsdp1)
    for name in ("set_device", "synchronize"):
        yield replaced(torch.cuda, name, _nothing())
    yield replaced(torch.cuda, "current_device", lambda: 0)
    yield from _shard_patches()
    yield from _stage_patches(world)
    for name in ("foreach_all_gather", "foreach_all_gather_copy_out", "foreach_reduce"):
        yield replaced(_fsdp_param_group, name, world.placed(getattr(_fsdp_param_group, name)))


def _shard_patches() -> Iterator[Any]:
    """Torch asks by identity whether a size changed: gathered tensors get a view for ints beyond 256 alone."""
    if (unpad := getattr(Shard, "_maybe_unpad_tensor", None)) is None:
        return

    def unpad_tensor(self: Shard, tensor: torch.Tensor, size: int, chunks: int) -> Any:
        return tensor.contiguous() if tensor.size(self.dim) == size else unpad(self, tensor, size, chunks)

    yield replaced(Shard, "_maybe_unpad_tensor", unpad_tensor)


def _stage_patches(world: World) -> Iterator[Any]:
    """Pipeline stages agree on shapes before the first step; here there is nobody to agree with."""
    from torch.distributed.pipelining.stage import PipelineStage, _PipelineStageBase

    def backward(operations: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = operations(*args, **kwargs)
            if world.recorder is not None:
                world.recorder.gradients.update(local_of(p.tensor)._cdata for p in found)
            return found

        return call

    def vote(self: Any, has_backward: bool, received_acc: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(1, dtype=torch.int32)

    def result(self: Any, received_result: torch.Tensor | None = None) -> torch.Tensor:
        if self._user_meta.inputs is None or self._user_meta.outputs is None:
            raise ForetraceError(
                f"pipeline stage {self.stage_index}: its shapes come from its neighbours, which do not run here: "
                "give PipelineStage input_args and output_args (tensors of one micro-batch)"
            )
        return torch.ones(1, dtype=torch.int32)

    yield replaced(PipelineStage, "_warmup_forward_vote", vote)
    yield replaced(PipelineStage, "_warmup_backward_result", result)
    for name in ("get_bwd_recv_ops", "get_bwd_send_ops"):
        yield replaced(_PipelineStageBase, name, backward(getattr(_PipelineStageBase, name)))


def know_fsdp(world: World, root: torch.nn.Module, recorder: RankRecorder) -> None:
    """Tell *recorder* the names of FSDP2's gathered parameters, *world* the modules that gather them."""
    from torch.distributed.fsdp import FSDPModule

    names = {id(p): n for n, p in root.named_parameters()}
    for path, module in root.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        state: Any = module._get_fsdp_state()
        for p in (p for group in state._fsdp_param_groups for p in group.fsdp_params):
            world.owners[id(p)] = path
            if (gathered := getattr(p, "_unsharded_param", None)) is not None:
                recorder.unsharded[gathered._cdata] = names.get(id(p.sharded_param), "")
