"""A training step: forward, loss, backward and optimizer, and a recorder that knows where autograd is in the model.

Whose code runs the step does not matter: an operator is of phase backward while the autograd engine runs (what
activation checkpointing computes again is), of phase optimizer inside `torch.optim.Optimizer.step` and where gradients
are off after a backward and outside every module (clipping), else of phase forward.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from foretrace.ir import RESIDENT_ROLES, ForetraceError, UnknownNameError

from .phases import Step
from .recorder import Recorder, Recording, on_meta, record

Parameters = Sequence[tuple[str, torch.nn.Parameter]]

_RANDOM_FLOW = re.compile(r"(^|_)layerdrop$|^apply_spec_augment$")
"""What training leaves out or masks at random, by module and configuration attribute: no two steps are alike."""
RESIDENT = frozenset(str(role) for role in RESIDENT_ROLES)
_ACCUMULATE = "torch::autograd::AccumulateGrad"
_ADD, _ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


class TrainingRecorder(Recorder):
    """Records a training step: the phase of each operator, and for the backward the module that its forward ran in.

    `optimizers` are those that stepped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: dict[int, Optimizer] = {}
        self._stepping = self._went_back = False
        self._last_origin = ""
        self._next_node = torch._C._autograd._get_sequence_nr()
        self._made_in: dict[int, str] = {}  # sequence number of an autograd node → the module that made it
        self._hooks: list[Any] = []

    def __enter__(self) -> Any:
        self._hooks = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: self._step(optimizer, True)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._step(optimizer, False)),
        ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def _step(self, optimizer: Optimizer, begins: bool) -> None:
        self._stepping = begins
        self.optimizers[id(optimizer)] = optimizer
        for group in optimizer.param_groups:  # as on a GPU, where torch takes multi-tensor operators by itself
            if group.get("foreach", True) is None and not group.get("fused"):
                group["foreach"] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _ADD and not types and _sums_gradients(args):
            func = _ADD_IN_PLACE
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        count, module = len(self.recording.ops), self.module
        self.phase = self._phase_now()
        if self.phase == "backward":
            self._went_back = True
            if not (torch.is_grad_enabled() and module):  # else it is computed again, inside a module's forward
                self.module = self._origin()
        self._attribute_nodes()
        if not (self._stepping and _on_host(args)):
            super()._record(func, args, kwargs, out)
        self.module = module
        if len(self.recording.ops) > count:
            self._finish_op()

    def _phase_now(self) -> str:
        if torch._C._current_graph_task_id() >= 0:
            return "backward"
        after = self._went_back and not self.depth and not torch.is_grad_enabled()
        return "optimizer" if self._stepping or after else "forward"

    def _attribute_nodes(self) -> None:
        """The autograd nodes made since last time are of the module that is running."""
        for node in range(self._next_node, torch._C._autograd._get_sequence_nr()):
            self._made_in[node] = self.module
        self._next_node = torch._C._autograd._get_sequence_nr()

    def _finish_op(self) -> None:
        op, tensors = self.recording.ops[-1], self.recording.tensors
        if op.phase == "optimizer":  # a scalar for each of a list of tensors, all the same
            op.literals = {n: v[0] if _all_equal(v) else v for n, v in op.literals.items()}
        elif op.phase == "backward" and (parameter := self._accumulated()) is not None:
            for number in op.outputs:
                for t in (tensors[number], tensors[tensors[number].storage]):
                    if t.role not in RESIDENT:
                        t.role, t.name = "gradient", parameter

    def _origin(self) -> str:
        """The module whose forward made the autograd node that runs now; of a gradient the parameter's own."""
        parameter = self._accumulated()
        if parameter is not None:
            return parameter.rpartition(".")[0]
        node = torch._C._current_autograd_node()
        if node is not None:
            self._last_origin = self._made_in.get(node._sequence_nr(), self._last_origin)
        return self._last_origin

    def _accumulated(self) -> str | None:
        """The name of the parameter whose gradient autograd is storing now."""
        node: Any = torch._C._current_autograd_node()
        if node is None or node.name() != _ACCUMULATE:
            return None
        number = self._ids.get(node.variable._cdata)
        known = None if number is None else self.recording.tensors[number]
        return None if known is None or known.role != "parameter" else known.name


def _sums_gradients(args: Sequence[Any]) -> bool:
    """Whether autograd sums two gradients into the first, which nobody else holds: seeing a mode, it does not dare."""
    if torch._C._current_graph_task_id() < 0 or torch.is_grad_enabled():
        return False
    a, b = args
    if isinstance(torch._C._current_autograd_node(), torch._C._FunctionBase) or a is b:
        return False
    same = isinstance(b, torch.Tensor) and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return same and torch._C._storage_Use_Count(a.untyped_storage()._cdata) == 2  # the tensor, and this wrapper


def _on_host(args: Sequence[Any]) -> bool:
    """Whether an operator works on the host's own numbers (an optimizer's step counts) alone."""
    given = [t for a in args for t in (a if isinstance(a, list | tuple) else (a,)) if isinstance(t, torch.Tensor)]
    return bool(given) and all(t.device.type == "cpu" and t.is_floating_point() for t in given)


def _all_equal(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(v == value[0] for v in value)


def train_step(root: torch.nn.Module, forward: Step, optimizer: str | None = None) -> Step:
    """The training step around *forward*: its ``loss`` (else the mean of squares of what it gives), backward, and one
    step of *optimizer* (`OPTIMIZERS`) whose state exists before.

    Raises `ForetraceError` where nothing of *root* learns.
    """

    def work() -> dict[str, torch.Tensor]:
        loss = _loss(forward.run())
        loss.backward()
        return {"loss": loss}

    return _step(root, forward.inputs, work, _with_state(optimizer, root))


def own_step(
    root: torch.nn.Module, inputs: Mapping[str, torch.Tensor], call: Callable[[], Any], optimizer: str | None = None
) -> Step:
    """The training step that a user's code does in *call*: forwards and backwards, an optimizer's step if it has one.

    It runs once unrecorded, so that optimizers have their state; *optimizer* steps after it.
    """

    def work() -> dict[str, torch.Tensor]:
        call()
        return {}

    recorder = TrainingRecorder()
    with on_meta(root, recorder):
        _step(root, inputs, work, []).run()
    step = _step(root, inputs, work, _with_state(optimizer, root))
    return Step({**step.inputs, **_state(root, recorder.optimizers.values())}, step.run)


def _step(
    root: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    work: Callable[[], dict[str, torch.Tensor]],
    optimizers: Sequence[Optimizer],
) -> Step:
    def run() -> dict[str, torch.Tensor]:
        root.zero_grad(set_to_none=True)
        with torch.enable_grad():
            results = work()
        for optimizer in optimizers:
            optimizer.step()
        return results

    return Step({**inputs, **_state(root, optimizers)}, run)


def set_to_train(root: torch.nn.Module) -> list[str]:
    """*root* in training mode, what leaves layers out or masks at random switched off; gives a note for each."""
    root.train()
    off: dict[str, Any] = {}
    for owner in (o for m in root.modules() for o in (m, getattr(m, "config", None)) if o is not None):
        for name in [n for n in vars(owner) if _RANDOM_FLOW.search(n)]:
            if value := getattr(owner, name):
                off[name] = value
                setattr(owner, name, type(value)(0))
    return [f"{name} (of the model: {value}) is off: no two steps would be alike" for name, value in off.items()]


def record_training(root: torch.nn.Module, step: Step) -> Recording:
    """What the training *step* dispatches."""
    return record(root, step.run, step.inputs, TrainingRecorder())


def _loss(results: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if results.get("loss") is not None:
        return results["loss"]
    squares = [t.square().mean() for t in results.values() if t.requires_grad]
    if not squares:
        raise ForetraceError("phase 'train': nothing that the model gives depends on a parameter")
    return torch.stack(squares).sum() if len(squares) > 1 else squares[0]


def _muon(learning: Parameters) -> list[Optimizer]:
    """Muon for matrices inside the model; AdamW for the rest, embeddings and head (Jordan 2024, the Muon page)."""
    if not hasattr(torch.optim, "Muon"):
        raise ForetraceError(f"optimizer muon: torch {torch.__version__} has none, 2.9 does")
    ends = re.compile(r"embed|wte|wpe|lm_head|^head\.")
    inner = [p for n, p in learning if p.dim() == 2 and not ends.search(n)]
    rest = [p for n, p in learning if p.dim() != 2 or ends.search(n)]
    made: list[Optimizer] = [torch.optim.Muon(inner)] if inner else []
    return [*made, torch.optim.AdamW(rest, foreach=True)] if rest else made


OPTIMIZERS: dict[str, Callable[[Parameters], list[Optimizer]]] = {
    "sgd": lambda learning: [torch.optim.SGD([p for _, p in learning], foreach=True)],
    "adam": lambda learning: [torch.optim.Adam([p for _, p in learning], foreach=True)],
    "adamw": lambda learning: [torch.optim.AdamW([p for _, p in learning], foreach=True)],
    "adafactor": lambda learning: [torch.optim.Adafactor([p for _, p in learning], foreach=True)],
    "muon": _muon,
}
"""Optimizers as torch makes them by default on a GPU: multi-tensor operators, state in the parameters' dtype."""


def check_optimizer(name: str | None, phase: str) -> None:
    """Raise `UnknownNameError` for an optimizer that is none of `OPTIMIZERS`, `ForetraceError` outside training."""
    if name is None:
        return
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    if phase != "train":
        raise ForetraceError(f"--optimizer {name}: only --phase train has one, got phase {phase}")


def _with_state(name: str | None, root: torch.nn.Module) -> list[Optimizer]:
    """The optimizers, after one step that nobody records."""
    learning = [(n, p) for n, p in root.named_parameters() if p.requires_grad]
    if not learning:
        raise ForetraceError("phase 'train': no parameter of the model requires a gradient")
    if name is None:
        return []
    check_optimizer(name, "train")
    optimizers = OPTIMIZERS[name](learning)
    if len({getattr(p, "device_mesh", None) for _, p in learning}) > 1:  # torch has no multi-tensor operators for it
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["foreach"] = False
    for _, parameter in learning:
        parameter.grad = torch.empty_like(parameter)
    with Recorder():
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


def _state(root: torch.nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, torch.Tensor]:
    """What the optimizers keep on the device from step to step, by name."""
    names = {id(p): n for n, p in root.named_parameters()}
    return {
        f"optimizer_state.{key}.{names.get(id(parameter), '')}": value
        for optimizer in optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor) and not _on_host([value])
    }
