"""Captured graphs of real models at full size, against torch's own FLOP counter and hand formulae."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foretrace.capture as capture
from foretrace.capture import capture_graph, graph_from_fx
from foretrace.capture.models import PretrainedModel
from foretrace.capture.phases import make_step
from foretrace.capture.recorder import Recorder, record
from foretrace.ir import (
    ForetraceError,
    Graph,
    OpKind,
    Role,
    UnknownNameError,
    count_layers,
    evaluate_dim,
    find_blocks,
    print_text,
)

MODELS = ["gpt2", "Llama-3.1-8B", "Llama-3.2-1B", "Qwen3-8B"]
PHASES = ["forward", "prefill", "decode"]


def model_of(name: str) -> PretrainedModel:
    model = capture.resolve_model(name)
    assert isinstance(model, PretrainedModel)
    return model


def counted_flops(name: str, phase: str, attention: str, **point: int) -> int:
    """What torch counts on the model as it is, no recorder in sight."""
    model = model_of(name)
    root = model.build(None, attention)
    step = make_step(root, model.config, phase, point, "meta")
    with torch.no_grad(), Recorder(), FlopCounterMode(display=False) as counter:
        step.run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("name", "phase"), list(product(MODELS, PHASES)))
def test_flops_equal_torchs_counter_at_sizes_never_captured(name: str, phase: str) -> None:
    graph = capture_graph(name, phase=phase)
    point = {"batch": 4, "seq": 1 if phase == "decode" else 96, "context": 200}
    bindings = graph.bind({n: v for n, v in point.items() if n in graph.symbols})
    assert graph.flops(bindings) == pytest.approx(counted_flops(name, phase, "sdpa", **point), rel=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "Qwen3-8B"])
def test_eager_attention_has_the_same_flops(name: str) -> None:
    graph = capture_graph(name, attention="eager", batch=2)
    fused = capture_graph(name)
    bindings = graph.bind({"batch": 4, "seq": 64})
    assert graph.flops(bindings) == fused.flops(bindings)
    assert not any(op.kind is OpKind.ATTENTION for op in graph.ops)
    assert sum(op.kind is OpKind.SOFTMAX for op in graph.ops) == count_layers(graph)


def test_the_graph_of_two_is_that_of_one_but_for_copies() -> None:
    """One sequence needs no copy before eager attention's matmul: captured from either side it is the same graph."""
    graph = capture_graph("gpt2", attention="eager", batch=2)
    one = capture_graph("gpt2", attention="eager")
    assert graph.bind({"batch": 1})["batch"] == 1 == one.bind({})["batch"]
    assert graph.ops == one.ops
    assert sum("repeat" in op.attributes for op in graph.ops) > 0
    assert capture_graph("gpt2", batch=8).bind({"batch": 1})["batch"] == 1


def test_the_405b_at_full_depth() -> None:
    graph = capture_graph("Llama-3.1-405B")
    assert graph.parameter_count == 405_853_388_800
    assert count_layers(graph) == 126
    assert [b.repeats for b in find_blocks(graph)] == [126]
    batch, seq = 2, 4096
    dense = graph.parameter_count - 128256 * 16384  # the embedding is looked up, not multiplied
    norms = (2 * 126 + 1) * 16384
    attention = 126 * 4 * batch * 128 * seq * seq * 128
    assert graph.flops({"batch": batch, "seq": seq}) == 2 * batch * seq * (dense - norms) + attention


@pytest.mark.parametrize("phase", PHASES)
def test_every_size_is_exact_at_a_held_out_point(phase: str) -> None:
    """The graph over symbols, evaluated, equals a capture with every size fixed there."""
    open_graph = capture_graph("Qwen3-8B", phase=phase)
    point = {"batch": 4, "seq": 1 if phase == "decode" else 33, "context": 55}
    model = model_of("Qwen3-8B")
    root = model.build(None, "sdpa")
    step = make_step(root, model.config, phase, point, "meta")
    recording = record(root, step.run, step.inputs)
    made = [t for op in open_graph.ops if op.kind is not OpKind.VIEW for t in op.outputs]
    seen = [
        recording.tensors[t].shape
        for op in recording.ops
        if capture.aten.kind_of(op.function) is not OpKind.VIEW
        for t in op.outputs
    ]
    bindings = {n: v for n, v in point.items() if n in open_graph.symbols}
    shapes = [tuple(evaluate_dim(d, bindings) for d in open_graph.tensors[t].shape) for t in made]
    assert shapes == seen


def test_prefill_writes_the_cache_that_decode_reads() -> None:
    prefill, decode = (capture_graph("Llama-3.2-1B", phase=p) for p in ("prefill", "decode"))
    written = [t for op in prefill.ops for t in op.outputs if prefill.tensors[t].role is Role.KV_CACHE]
    read = decode.with_role(Role.KV_CACHE)
    cache_in = [t for t in read if t.name.startswith("kv_cache") and "context" in str(t.shape[2])]
    per_token = 2 * 16 * 8 * 64
    at = {"batch": 3, "seq": 100}
    assert sum(evaluate_dim(prefill.tensors[t].elements, at) for t in written) == per_token * 300
    inputs = {i for op in decode.ops for i in op.inputs} - {t for op in decode.ops for t in op.outputs}
    entered = [decode.tensors[i] for i in inputs if decode.tensors[i].role is Role.KV_CACHE]
    assert sum(evaluate_dim(t.elements, {"batch": 3, "context": 100}) for t in entered) == per_token * 300
    assert cache_in


def test_tied_weights_count_once_and_norms_carry_module_paths() -> None:
    graph = capture_graph("gpt2")
    assert graph.parameter_count == 124_439_808
    assert {op.module for op in graph.ops if op.kind is OpKind.NORM} == {
        *(f"transformer.h.{i}.ln_{j}" for i in range(12) for j in (1, 2)),
        "transformer.ln_f",
    }


def test_two_captures_are_byte_identical() -> None:
    assert print_text(capture_graph("gpt2")) == print_text(capture_graph("gpt2"))


def kinds(graph: Graph) -> Counter[OpKind]:
    return Counter(op.kind for op in graph.ops if op.kind in (OpKind.MATMUL, OpKind.ATTENTION, OpKind.NORM))


@pytest.mark.parametrize("name", ["gpt2", "Llama-3.2-1B"])
def test_torch_export_gives_the_same_graph(name: str) -> None:
    root = model_of(name).build(None, "sdpa")
    tokens = torch.zeros(2, 16, dtype=torch.long, device="meta")
    exported = graph_from_fx(torch.export.export(root, (tokens,), {"use_cache": False}), name=name)
    recorded = capture_graph(name, batch=2, seq=16)
    at = recorded.bind({})
    assert exported.flops({}) == recorded.flops(at)
    assert exported.parameter_count == recorded.parameter_count
    assert kinds(exported) == kinds(recorded)
    places = [[op.module for op in g.ops if op.kind is OpKind.MATMUL] for g in (exported, recorded)]
    assert places[0] == places[1]


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x))
        q = x.unsqueeze(1)
        q = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        return self.head(q.squeeze(1)).softmax(-1)


def test_an_exported_program_with_open_sizes_equals_the_recorded_module() -> None:
    dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)
    program = torch.export.export(Small(), (torch.randn(2, 5, 8),), dynamic_shapes=dynamic)
    names = [str(s) for s in next(n for n in program.graph.nodes if n.name == "x").meta["val"].shape[:2]]
    exported = graph_from_fx(program, symbols=dict(zip(names, ("batch", "seq"), strict=True)))
    assert set(exported.symbols) == {"batch", "seq"}

    from foretrace.capture.models import UserModel

    recorded = capture_graph(UserModel("small", Small(), (torch.randn(3, 7, 8),), {}))
    at = {"batch": 3, "seq": 7}
    assert [(op.kind, op.name, op.module) for op in exported.ops] == [
        (op.kind, op.name, op.module) for op in recorded.ops
    ]
    assert exported.flops(at) == recorded.flops({})
    shapes = [[tuple(evaluate_dim(d, at) for d in t.shape) for t in g.tensors] for g in (exported, recorded)]
    assert sorted(shapes[0]) == sorted(shapes[1])


def test_a_graph_module_without_values_says_what_to_do() -> None:
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ForetraceError, match=r"has no meta\['val'\]: trace with torch.export"):
        graph_from_fx(traced)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phase": "decod"}, "unknown phase 'decod'; nearest: decode"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"batch": 0}, "--batch 0: expected a size of at least 1"),
        ({"context": 8}, "unknown symbol 'context'"),
        ({"dtype": "float31"}, "unknown dtype 'float31'; nearest: float32"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((ForetraceError, UnknownNameError), match=message):
        capture_graph("gpt2", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("layer", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_convolutions_count_as_torch_counts_them(layer: type[torch.nn.Module], groups: int) -> None:
    from foretrace.capture.models import UserModel

    module, image = layer(8, 16, 3, stride=2, padding=1, groups=groups), torch.zeros(2, 8, 10, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    graph = capture_graph(UserModel("convolution", module, (image,), {}))
    assert graph.flops({}) == counter.get_total_flops()
