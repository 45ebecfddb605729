"""torch.fx in: a GraphModule with ``meta["val"]`` (torch.export, torch.compile, a user's own tracer) → Graph.

The module is interpreted on meta under the same recorder that captures models, at the same kind of points: both ways
give the same operators, kinds and work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
import torch.fx

from foretrace.ir import ForetraceError, Graph, Symbol

from .build import correspond, merge
from .plugins.attention import attention_as_one_op
from .recorder import META, Recorder, Recording, on_meta
from .symbolic import DimSolver, choose_points

_SDPA = torch.ops.aten.scaled_dot_product_attention.default
_ASSERTIONS = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("_assert_scalar", "_assert_async", "_assert_tensor_metadata")
    if hasattr(torch.ops.aten, name)
)


def graph_from_fx(
    source: "torch.fx.GraphModule | torch.export.ExportedProgram",
    *,
    name: str = "fx",
    phase: str = "forward",
    symbols: Mapping[str, str] | None = None,
    inputs: Sequence[Any] | None = None,
) -> Graph:
    """The Graph of an exported program or a GraphModule whose placeholders carry ``meta["val"]``.

    Symbolic sizes stay open under their fx names (``s77``) or under those that *symbols* gives them
    (``{"s77": "batch"}``). A module without ``meta["val"]`` (from `torch.fx.symbolic_trace`) needs example *inputs*,
    one a placeholder; its sizes are fixed to theirs. Raises `ForetraceError` where it has neither.
    """
    module = _without_guards(source) if isinstance(source, torch.export.ExportedProgram) else source
    holders = [n for n in module.graph.nodes if n.op == "placeholder"]
    if inputs is not None and len(inputs) != len(holders):
        raise ForetraceError(
            f"expected {len(holders)} example inputs ({', '.join(map(str, holders))}), got {len(inputs)}"
        )
    values = {n.target: _value(n) if inputs is None else inputs[i] for i, n in enumerate(holders)}
    rename = dict(symbols or {})
    defaults = {rename.get(s, s): hint for v in values.values() for s, hint in _symbols(v).items()}
    points = choose_points(list(defaults), {}, {}) if defaults else [{}]
    runs: list[tuple[Recording, dict[int, int]]] = []
    for point in points:
        given = {str(target): _input(value, point, rename) for target, value in values.items()}
        weights = {str(target) for target, value in values.items() if isinstance(value, torch.nn.Parameter)}
        recording = _interpret(module, given, weights)
        runs.append((recording, correspond(runs[0][0], recording) if runs else {}))
    metadata = {"source": name, "recorder": "torch.fx", "torch": torch.__version__.split("+")[0]}
    table = {n: Symbol(n, default) for n, default in defaults.items()}
    return merge(name, phase, table, runs, DimSolver(points, list(defaults)), metadata)


class GraphCollector:
    """A backend for `torch.compile` that keeps the Graph of everything it is given and runs it as it is.

    ``collector = GraphCollector(); torch.compile(model, backend=collector)(x); collector.graphs``: one graph for each
    piece between graph breaks. FX goes by torch functions there, so modules and operators are those of the recorder.
    """

    def __init__(self, name: str = "compiled") -> None:
        self.name = name
        self.graphs: list[Graph] = []

    def __call__(self, module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Called by torch.compile with each piece."""
        self.graphs.append(graph_from_fx(module, name=f"{self.name}.{len(self.graphs)}"))
        return module.forward


def _without_guards(program: "torch.export.ExportedProgram") -> torch.fx.GraphModule:
    try:
        return program.module(check_guards=False)
    except TypeError:  # torch 2.11 and older have no guards to leave out
        return program.module()


def _value(node: torch.fx.Node) -> Any:
    value = node.meta.get("val", node.meta.get("example_value"))  # the latter is TorchDynamo's
    if value is None and "val" not in node.meta:
        raise ForetraceError(
            f"placeholder {node.target!r} has no meta['val']: trace with torch.export, or give example inputs"
        )
    return value


def _symbols(value: Any) -> dict[str, int]:
    """Names of the symbols in a placeholder's sizes, with the size each was traced at."""
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    found: dict[str, int] = {}
    for size in sizes:
        if isinstance(size, torch.SymInt):
            for s in size.node.expr.free_symbols:
                hint = size.node.hint if size.node.expr == s else None
                found.setdefault(str(s), int(hint) if hint is not None else 2)
    return found


def _input(value: Any, point: Mapping[str, int], rename: Mapping[str, str]) -> Any:
    def size(s: Any) -> int:
        if isinstance(s, int):
            return s
        return int(s.node.expr.subs({v: point[rename.get(str(v), str(v))] for v in s.node.expr.free_symbols}))

    if isinstance(value, torch.SymInt):
        return size(value)
    if not isinstance(value, torch.Tensor):
        return value
    shape = [size(s) for s in value.shape]
    device = META if value.dtype.is_floating_point or value.dtype.is_complex else torch.device("cpu")
    return torch.zeros(shape, dtype=value.dtype, device=device)


class _Interpreter(torch.fx.Interpreter):
    """Runs a GraphModule node by node with its attributes on meta, telling the recorder where in the model it is."""

    def __init__(self, module: torch.fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(module)
        self.recorder = recorder
        self._on_meta: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for attribute, tensor in _attributes(module):
            twin = tensor
            if tensor.device != META and (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
                twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
            self._on_meta[id(tensor)] = (twin, tensor)
            recorder.declare(twin, "parameter" if isinstance(tensor, torch.nn.Parameter) else "buffer", attribute)

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node; its innermost module is the path of what it dispatches."""
        stack = n.meta.get("nn_module_stack")
        self.recorder.module = _path(list(stack.values())[-1]) if stack else ""
        return super().run_node(n)

    def fetch_attr(self, target: str) -> Any:
        """The attribute, on meta."""
        value = super().fetch_attr(target)
        return self._on_meta[id(value)][0] if id(value) in self._on_meta else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function; attention stays one operator, and what a program asserts of its values is taken to hold."""
        if getattr(target, "overloadpacket", None) in _ASSERTIONS:  # so many image tokens among ids that are not known
            return None
        if target is _SDPA:
            return attention_as_one_op(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def _path(entry: Any) -> str:
    path = entry[0] if isinstance(entry, tuple) else str(entry)
    return path.replace("L['self'].", "").replace("L['self']", "").replace("[", ".").replace("]", "").replace("'", "")


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _interpret(module: torch.fx.GraphModule, inputs: Mapping[str, Any], weights: Set[str]) -> Recording:
    recorder = Recorder()
    interpreter = _Interpreter(module, recorder)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            recorder.declare(value, "parameter" if name in weights else "input", name)
    with on_meta(module, recorder):
        out = interpreter.run(*inputs.values(), enable_io_processing=False)
    results = torch.utils._pytree.tree_leaves(out)
    return recorder.finish({f"output.{i}": t for i, t in enumerate(results) if isinstance(t, torch.Tensor)})
