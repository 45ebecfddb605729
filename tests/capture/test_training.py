"""Training steps against torch's FLOP counter, profiler and optimizers, on the same small models run for real."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig

from foretrace.capture import capture_graph
from foretrace.capture.models import PretrainedModel, UserModel
from foretrace.capture.training import OPTIMIZERS
from foretrace.ir import ForetraceError, Graph, OpKind, Role, UnknownNameError, evaluate_dim, parse_text, print_text
from foretrace.replay import replay_graph

PHASES = ("forward", "backward")
GPT2 = GPT2Config(
    n_layer=3, n_embd=128, n_head=4, vocab_size=1000, n_positions=128, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
LLAMA = LlamaConfig(
    num_hidden_layers=3, hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=500,
)  # fmt: skip


def small(config: Any) -> PretrainedModel:
    return PretrainedModel(config.model_type, config, "float32")


def train(config: Any = GPT2, **arguments: Any) -> Graph:
    arguments.setdefault("attention", "eager")
    return capture_graph(small(config), phase="train", **arguments)


def real_step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, batch: int = 4, seq: int = 64) -> Any:
    """A step on the CPU, as a training script has it."""
    model.train().requires_grad_(True)
    ids = torch.randint(0, 100, (batch, seq))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step


def flops(graph: Graph, phase: str, **point: int) -> int:
    at = graph.bind(point)
    return int(sum(evaluate_dim(op.work.matrix_flops, at) for op in graph.ops if op.phase == phase))


def role_bytes(graph: Graph, role: Role) -> int:
    return int(sum(evaluate_dim(t.bytes, {}) for t in graph.with_role(role)))


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_flops_equal_torchs_counter_and_are_three_forwards(config: Any) -> None:
    graph = train(config)
    assert set(graph.symbols) == {"batch", "seq"}
    with FlopCounterMode(display=False) as counter:
        real_step(small(config).build(None, "eager", "cpu"), batch=5, seq=50)()
    forward, backward = (flops(graph, p, batch=5, seq=50) for p in ("forward", "backward"))
    assert forward + backward == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert (forward + backward) / forward == pytest.approx(3, rel=1e-3)


def test_attention_goes_back_as_one_operator() -> None:
    graph = train(LLAMA, attention="sdpa")
    there, back = ([op for op in graph.ops if op.kind is OpKind.ATTENTION and op.phase == p] for p in PHASES)
    assert len(there) == len(back) == 3
    at = graph.bind({})
    ratio = evaluate_dim(back[0].work.matrix_flops, at) / evaluate_dim(there[0].work.matrix_flops, at)
    assert ratio == 2.5  # it computes the scores again
    assert back[0].module == there[2].module


def test_what_goes_back_is_in_the_module_that_went_there() -> None:
    graph = train(optimizer="adamw")
    matmuls = [Counter(op.module for op in graph.ops if op.kind is OpKind.MATMUL and op.phase == p) for p in PHASES]
    assert matmuls[1] == {module: 2 * n for module, n in matmuls[0].items()}
    loss = {op.name for op in graph.ops if op.phase == "backward" and not op.module}
    assert loss <= {f"aten.{n}" for n in (
        "nll_loss_backward.default", "_log_softmax_backward_data.default", "view.default", "detach.default",
    )}  # fmt: skip


def test_the_backward_dispatches_what_a_real_one_does() -> None:
    graph = train()
    step = real_step(small(GPT2).build(None, "eager", "cpu"))
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    seen = Counter(event.name for event in profiler.events())
    there = Counter(f"aten::{op.name.split('.')[1]}" for op in graph.ops)
    compared = ("add_", "mm", "bmm", "native_layer_norm_backward", "_softmax_backward_data", "tanh_backward", "sum")
    assert {n: there[f"aten::{n}"] for n in compared} == {n: seen[f"aten::{n}"] for n in compared}
    assert there["aten::add_"] > 0  # gradients that meet are summed in place
    assert "aten::new_empty_strided" not in there  # parameters' gradients are kept, not copied


def test_peak_memory_is_that_of_a_real_step() -> None:
    model = small(GPT2).build(None, "eager", "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    step = real_step(model, optimizer)
    step()
    kept = [*model.parameters()] + [t for s in optimizer.state.values() for t in s.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    in_use = peak = sum(t.nbytes for t in kept)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    predicted = replay_graph(train(optimizer="adamw"), "h100-sxm", batch=4, seq=64).memory
    assert predicted.peak_bytes == pytest.approx(peak, rel=0.01)


def test_the_optimizers_memory_by_hand() -> None:
    """At tiny sizes AdamW's step is the peak: weights, gradients, two moments, and the root of the second."""
    graph = train(optimizer="adamw")
    weights = graph.parameter_bytes
    memory = replay_graph(graph, "h100-sxm", batch=2, seq=2).memory
    by_category = dict(memory.by_category_bytes)
    assert (by_category["parameters"], by_category["gradients"]) == (weights, weights)
    assert by_category["optimizer"] == 2 * weights
    assert by_category["activations"] == weights + 2 * 2 * 8 + 4  # the root, the token ids, the loss
    assert memory.peak_op == "aten._foreach_sqrt.default"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_gradients_are_those_of_a_real_optimizer(name: str) -> None:
    graph = train(optimizer=name)
    assert graph.metadata["optimizer"] == name
    assert len(graph.with_role(Role.GRADIENT)) == len(graph.with_role(Role.PARAMETER))
    assert role_bytes(graph, Role.GRADIENT) == graph.parameter_bytes
    model = small(GPT2).build(None, "eager", "cpu").requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = 0
    for optimizer in OPTIMIZERS[name](list(model.named_parameters())):
        optimizer.step()
        state += sum(t.nbytes for s in optimizer.state.values() for k, t in s.items() if k != "step")
    assert role_bytes(graph, Role.OPTIMIZER_STATE) == state
    phases = [op.phase for op in graph.ops]
    assert phases == sorted(phases, key=("forward", "backward", "optimizer").index)
    assert phases[-1] == "optimizer"
    assert parse_text(print_text(graph)) == graph


def test_a_step_without_an_optimizer_ends_with_the_gradients() -> None:
    graph = train()
    assert {op.phase for op in graph.ops} == {"forward", "backward"}
    result = replay_graph(graph, "h100-sxm")
    assert result.phases_s["optimizer"] == 0
    assert sum(result.phases_s.values()) == pytest.approx(result.time_s)


class Block(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.mode = mode

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mode:
            return x + checkpoint(self.inner, x, use_reentrant=self.mode == "reentrant")
        return x + self.inner(x)


def blocks(mode: str = "") -> UserModel:
    x = torch.randn(4, 16, 32, requires_grad=mode == "reentrant")
    return UserModel("blocks", nn.Sequential(*(Block(mode) for _ in range(3))), (x,), {})


@pytest.mark.parametrize(("mode", "again"), [("reentrant", 1.0), ("early stop", 0.5)])
def test_checkpointed_layers_run_again_in_the_backward(mode: str, again: float) -> None:
    """Without reentry the last matmul's result is nobody's, and torch stops before it."""
    plain, saving = (capture_graph(blocks(m), phase="train") for m in ("", mode))
    forward = flops(plain, "forward")
    assert flops(saving, "forward") == forward
    assert flops(saving, "backward") == (2 + again) * forward
    assert {op.module for op in saving.ops if op.kind is OpKind.NORM} == {"0.norm", "1.norm", "2.norm"}
    assert len(saving.with_role(Role.GRADIENT)) == 18
    peaks = [replay_graph(g, "h100-sxm").memory.by_category_bytes["activations"] for g in (plain, saving)]
    assert peaks[1] < peaks[0] / 2


def test_a_transformers_model_with_checkpointing() -> None:
    def gpt2(checkpointing: bool) -> UserModel:
        with torch.device("meta"):
            model = GPT2LMHeadModel._from_config(GPT2, attn_implementation="eager")
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        ids = torch.zeros(2, 16, dtype=torch.long)
        return UserModel("gpt2", model, (), {"input_ids": ids, "labels": ids, "use_cache": False})

    plain, saving = (capture_graph(gpt2(on), phase="train") for on in (False, True))
    assert flops(saving, "forward") == flops(plain, "forward")
    assert flops(plain, "backward") < flops(saving, "backward") < 1.5 * flops(plain, "backward")
    assert len(saving.with_role(Role.OUTPUT)) == 1  # the model's own loss


def test_gradient_accumulation_and_the_optimizer_of_a_users_own_step() -> None:
    model = blocks()
    optimizer = torch.optim.AdamW(model.module.parameters())

    def step(module: nn.Module, x: torch.Tensor) -> None:
        for part in x.chunk(2):
            (module(part).square().mean() / 2).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    graph = capture_graph(replace(model, step=step), phase="train")
    whole = capture_graph(blocks(), phase="train")
    assert [flops(graph, p) for p in PHASES] == [flops(whole, p) for p in PHASES]
    order = [p for i, p in enumerate(op.phase for op in graph.ops) if i == 0 or graph.ops[i - 1].phase != p]
    assert order == ["forward", "backward", "forward", "backward", "optimizer"]
    assert role_bytes(graph, Role.GRADIENT) == graph.parameter_bytes
    assert role_bytes(graph, Role.OPTIMIZER_STATE) == 2 * graph.parameter_bytes
    phases = replay_graph(graph, "h100-sxm").phases_s
    assert phases["forward"] < phases["backward"]
    assert phases["optimizer"] > 0


def test_a_model_of_which_nothing_learns_is_refused() -> None:
    model = blocks()
    model.module.requires_grad_(False)
    with pytest.raises(ForetraceError, match="no parameter of the model requires a gradient"):
        capture_graph(model, phase="train")


def test_dropout_is_one_operator_with_a_mask_of_bytes() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    graph = capture_graph(UserModel("dropout", module, (torch.randn(2, 8),), {}), phase="train")
    (dropout,) = (op for op in graph.ops if op.name == "aten.native_dropout.default")
    mask = graph.tensors[dropout.outputs[1]]
    assert str(mask.dtype) == "bool"
    (back,) = (op for op in graph.ops if op.name == "aten.native_dropout_backward.default")
    assert dropout.outputs[1] in back.inputs  # what autograd saves lives until it is read
    assert (back.module, back.phase) == ("1", "backward")


def test_the_405b_trains_at_full_depth() -> None:
    graph = capture_graph("Llama-3.1-405B", phase="train", optimizer="adamw")
    assert role_bytes(graph, Role.GRADIENT) == 2 * 405_853_388_800
    assert role_bytes(graph, Role.OPTIMIZER_STATE) == 4 * 405_853_388_800
    dense = sum(
        evaluate_dim(op.work.matrix_flops, graph.bind({})) * (1 if op.phase == "forward" else -0.5)
        for op in graph.ops
        if op.kind is OpKind.MATMUL
    )
    assert dense == 0  # every matmul goes back as two


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"phase": "train", "optimizer": "adamww"}, "unknown optimizer 'adamww'; nearest: adamw"),
        ({"phase": "prefill", "optimizer": "adamw"}, "--optimizer adamw: only --phase train has one"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((ForetraceError, UnknownNameError), match=error):
        capture_graph(small(GPT2), **arguments)


def test_what_training_leaves_to_chance_is_off_and_noted() -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = AutoConfig.for_model("wav2vec2", **small, layerdrop=0.25, apply_spec_augment=True)
    graph = capture_graph(PretrainedModel("m", config, "float32"), phase="train")
    notes = [v for k, v in graph.metadata.items() if k.startswith("note.")]
    assert any(n.startswith("layerdrop (of the model: 0.25) is off") for n in notes)
    assert any(n.startswith("apply_spec_augment (of the model: True) is off") for n in notes)
    config = AutoConfig.for_model("wav2vec2", **small, layerdrop=0.0, apply_spec_augment=False)
    quiet = capture_graph(PretrainedModel("m", config, "float32"), phase="train")
    assert not any("is off" in v for v in quiet.metadata.values())
