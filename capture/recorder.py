"""The dispatcher recorder: run a model on the meta device and log every operator the framework really executes.

Float tensors live on meta (a shape, no data), integer and bool tensors are real on the CPU, so that code which looks
inside its indices (position grids, masks, image-token scatter) runs as it does for real. Nothing is computed on
floats: a model of any size runs in the memory of its Python objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from .memo import Memo
from .plugins import installed
from .unknown import MAX_REAL_ELEMENTS, UNASSUMED, UnknownLists, assume, full_masks

META = torch.device("meta")
CPU = torch.device("cpu")

_ITEM = (
    torch.ops.aten._local_scalar_dense.default
)  # the host waits for the device here: recorded though it makes no tensor


_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")


@dataclass(slots=True)
class RawTensor:
    """A tensor as it was seen: concrete shape and strides, torch dtype, an id of its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    role: str = "activation"
    name: str = ""


@dataclass(slots=True)
class RawOp:
    """One dispatched operator: the overload, tensors in and out by number, the literal arguments that differ from
    their defaults, and where in the model it ran. Of a loop that was rolled up (`loops`) it says how many times it
    runs, and of the op behind the loop how many pieces its one input stands for."""

    function: torch._ops.OpOverload[Any, Any]
    inputs: list[int]
    outputs: list[int]
    literals: dict[str, Any]
    module: str
    phase: str
    times: int = 1
    pieces: int = 1


@dataclass
class Recording:
    """Everything one run of a model did, in order, at one concrete shape."""

    tensors: list[RawTensor] = field(default_factory=list)
    ops: list[RawOp] = field(default_factory=list)
    results: dict[int, str] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Signature:
    """What the recorder needs of an operator's schema, looked up once."""

    names: tuple[str, ...]
    defaults: tuple[Any, ...]
    is_factory: bool
    writes: tuple[int, ...]


_signatures: dict[Any, _Signature] = {}


def _signature(function: Any) -> _Signature:
    found = _signatures.get(function)
    if found is None:
        arguments = function._schema.arguments
        found = _Signature(
            tuple(a.name for a in arguments),
            tuple(a.default_value if a.has_default_value() else _MISSING for a in arguments),
            "Tensor" in str([r.type for r in function._schema.returns])
            and not any("Tensor" in str(a.type) for a in arguments),
            tuple(i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write),
        )
        _signatures[function] = found
    return found


class _Missing:
    pass


_MISSING = _Missing()


class Recorder(TorchDispatchMode):
    """Records into `recording` while active. `module` and `phase` label what is dispatched meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self.module = ""
        self.depth = 0
        self.phase = "forward"
        self._ids: dict[int, int] = {}  # of a tensor's address
        self._storages: dict[int, int] = {}
        self._memo = Memo()
        self._seen: list[Any] = []  # weak: an address stays taken, and autograd still sees who owns a tensor

    def declare(self, tensor: torch.Tensor, role: str, name: str) -> int:
        """Make *tensor* known before the run, with its role and name; gives its number."""
        known = self._ids.get(tensor._cdata)
        return self._number(tensor, role, name) if known is None else known

    def _number(self, tensor: torch.Tensor, role: str = "activation", name: str = "") -> int:
        """A new number for *tensor*, also where it has one: an in-place result is a new value of the same storage."""
        strided = tensor.layout is torch.strided
        number = len(self.recording.tensors)
        storage = tensor.untyped_storage() if strided else None
        first = self._storages.setdefault(tensor._cdata if storage is None else storage._cdata, number)
        stride = tuple(tensor.stride()) if strided else ()
        self.recording.tensors.append(RawTensor(tuple(tensor.shape), stride, tensor.dtype, first, role, name))
        if first == number and storage is not None:
            self._seen.append(StorageWeakRef(storage))
        self._ids[tensor._cdata] = number
        self._seen.append(torch._C._WeakTensorRef(tensor))  # type: ignore[attr-defined]
        return number

    def finish(self, results: Mapping[str, torch.Tensor]) -> Recording:
        """Name the results of the run (those that an op touched) and give the recording."""
        for name, tensor in results.items():
            if (number := self._ids.get(tensor._cdata)) is not None:
                self.recording.results[number] = name
        return self.recording

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if _shapes_alone():
            return func(*args, **kwargs)
        if types and any(_is_distributed(t) for t in types):
            return NotImplemented  # its own dispatch gives the operators on local tensors
        out = self._run(func, args, kwargs)
        self._record(func, args, kwargs, out)
        return out

    def move(self, module: str, depth: int) -> None:
        """The model is in *module* from here on, *depth* forwards deep."""
        self.module, self.depth = module, depth

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _run_on_meta(func, args, kwargs, self.recording.notes, self._memo)

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self._note(func, args, kwargs, out)

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        signature = _signature(func)
        outputs = _tensors((out,)) or _tensors([args[i] for i in signature.writes if i < len(args)])
        if not outputs and func is not _ITEM:
            return
        inputs: list[int] = []
        literals: dict[str, Any] = {}
        for i, value in enumerate(args):
            self._argument(signature.names[i], value, signature.defaults[i], inputs, literals)
        for name, value in kwargs.items():
            at = signature.names.index(name)
            self._argument(name, value, signature.defaults[at], inputs, literals)
        produced = [self._number(t) for t in outputs]
        self.recording.ops.append(RawOp(func, inputs, produced, literals, self.module, self.phase))

    def _argument(self, name: str, value: Any, default: Any, inputs: list[int], literals: dict[str, Any]) -> None:
        if isinstance(value, torch.Tensor):
            inputs.append(self.declare(value, "input", ""))
        elif isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            inputs.extend(self.declare(v, "input", "") for v in value if isinstance(v, torch.Tensor))
        elif value is not None and name != "device" and (default is _MISSING or value != default):
            literals[name] = value


@lru_cache(maxsize=256)
def _is_distributed(kind: type) -> bool:
    """Whether tensors of *kind* are torch.distributed's wrappers of a local one."""
    return kind.__module__.startswith("torch.distributed.")


def _shapes_alone() -> bool:
    """Whether a FakeTensorMode is on: a DTensor works out the shape of a result."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


class _Silent(Recorder):
    """Runs things as `Recorder` does and writes nothing down."""

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        pass


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among *values*, in order, those inside lists too."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found


def _run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], notes: set[str], memo: Memo) -> Any:
    """Run *func* so that float results are on meta and integer results are real wherever their inputs are."""
    given = _tensors((*args, *kwargs.values()))
    if not given:
        return _create(func, args, kwargs)
    real = [t for t in given if not t.is_meta]
    if len(real) == len(given):
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        try:
            return _floats_to_meta(func(*args, **kwargs), given)
        except NotImplementedError:  # a CPU has no kernel for it (histc of integers), an accelerator may
            args, kwargs = tuple(_to_meta(a) for a in args), {k: _to_meta(v) for k, v in kwargs.items()}
    if (assumed := assume(func, args, kwargs, notes)) is not UNASSUMED:
        return assumed
    if func._schema.name in _INDEXED:
        args = (args[0], _expand_masks(full_masks(args[1], notes)), *args[2:])
    if real:
        args = tuple(_to_meta(a) for a in args)
        kwargs = {k: _to_meta(v) for k, v in kwargs.items()}
    if kwargs.get("device") is not None:
        kwargs["device"] = META
    return memo.run(func, args, kwargs)


def _create(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A factory (arange, full, zeros): on meta for floats, real for integers of a sane size."""
    if not _signature(func).is_factory:  # e.g. aten.cat of an empty list: let torch say what is wrong
        return func(*args, **kwargs)
    on_meta = func(*args, **(kwargs | {"device": META}))
    if not isinstance(on_meta, torch.Tensor) or on_meta.dtype.is_floating_point or on_meta.dtype.is_complex:
        return on_meta
    if on_meta.numel() > MAX_REAL_ELEMENTS:
        return on_meta
    made = func(*args, **(kwargs | {"device": CPU}))
    return made.zero_() if "empty" in func._schema.name else made


def _floats_to_meta(out: Any, given: list[torch.Tensor]) -> Any:
    """Results computed on the CPU: floats lose their data unless they are views or in-place results of real floats."""
    if isinstance(out, torch.Tensor):
        is_float = out.dtype.is_floating_point or out.dtype.is_complex
        if not is_float or out.dim() == 0 or any(out is t or t.dtype == out.dtype for t in given):
            return out
        return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=META)
    if isinstance(out, list | tuple):
        return type(out)(_floats_to_meta(o, given) for o in out)
    return out


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.device.type == "meta":
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    if isinstance(value, list | tuple):
        return type(value)(_to_meta(v) for v in value)
    return value


def _expand_masks(indices: Any) -> list[Any]:
    """Boolean masks among indices, while they are still real, as the integer indices they stand for."""
    expanded: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype is torch.bool and index.device.type == "cpu":
            expanded.extend(index.nonzero(as_tuple=True))
        else:
            expanded.append(index)
    return expanded


@contextmanager
def module_paths(root: torch.nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> Iterator[None]:
    """Call *enter*(path) and *leave*() around every submodule's forward while the context is open."""
    names = {id(m): name for name, m in root.named_modules()}

    def before(module: torch.nn.Module, *_: Any) -> None:
        enter(names.get(id(module), ""))

    def after(module: torch.nn.Module, *_: Any) -> None:
        leave()

    hooks = torch.nn.modules.module
    with ExitStack() as stack:
        first = hooks.register_module_forward_pre_hook(before)
        stack.callback(first.remove)
        last = hooks.register_module_forward_hook(after, always_call=True)
        stack.callback(last.remove)
        yield


@contextmanager
def on_meta(root: torch.nn.Module, recorder: Recorder | None = None) -> Iterator[None]:
    """Run *root* inside by the recorder's rules (floats on meta, integers real), every plug-in installed.

    What runs is recorded by *recorder* if one is given.
    """
    recorder = recorder or _Silent()
    with torch.no_grad(), recorder, installed(root), UnknownLists(recorder.recording.notes), _modes_in_backward():
        yield


@contextmanager
def _modes_in_backward() -> Iterator[None]:
    """The function modes that are on now are on in a backward too, where checkpointed forwards run again.

    Torch turns each mode off while it handles a call, and ``loss.backward()`` is one.
    """
    autograd: Any = torch.autograd
    run, modes = autograd._engine_run_backward, _get_current_function_mode_stack()

    def run_with_modes(*args: Any, **kwargs: Any) -> Any:
        on = _get_current_function_mode_stack()
        with ExitStack() as stack:
            for mode in modes:
                if not any(mode is other for other in on):
                    stack.enter_context(mode)
            return run(*args, **kwargs)

    autograd._engine_run_backward = run_with_modes
    try:
        yield
    finally:
        autograd._engine_run_backward = run


def record(
    root: torch.nn.Module,
    run: Callable[[], Mapping[str, torch.Tensor]],
    inputs: Mapping[str, torch.Tensor],
    recorder: Recorder | None = None,
) -> Recording:
    """Run *run*() once and return what was dispatched.

    Parameters and buffers of *root* are declared first, then *inputs* by name. *run* gives the results by name; a name
    that starts with ``kv_cache`` makes a tensor's role, on either side; so does ``optimizer_state`` of an input.
    """
    recorder = recorder or Recorder()
    for name, parameter in root.named_parameters():
        recorder.declare(parameter, "parameter", name)
    for name, buffer in root.named_buffers():
        recorder.declare(buffer, "buffer", name)
    for name, tensor in inputs.items():
        role = name.partition(".")[0]
        recorder.declare(tensor, role if role in ("kv_cache", "optimizer_state") else "input", name)
    path: list[str] = []

    def enter(name: str) -> None:
        path.append(recorder.module)
        recorder.move(name, len(path))

    def leave() -> None:
        module = path.pop()
        recorder.move(module, len(path))

    with module_paths(root, enter, leave), on_meta(root, recorder):
        out = run()
    return recorder.finish(out)


def record_settled(
    root: torch.nn.Module, run: Callable[[], Mapping[str, torch.Tensor]], inputs: Mapping[str, torch.Tensor]
) -> Recording:
    """`record`, again where the first run set the model up (RWKV rescales its weights): what every later step does."""
    before = _plain_state(root)
    recording = record(root, run, inputs)
    return recording if _plain_state(root) == before else record(root, run, inputs)


def _plain_state(root: torch.nn.Module) -> list[Any]:
    return [v for m in root.modules() for v in vars(m).values() if isinstance(v, bool | int | float)]
