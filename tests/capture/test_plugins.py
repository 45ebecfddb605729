"""Operator plug-ins: what kernels do as one operator, its work against torch's counter or hand formulae."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foretrace.capture import capture_graph
from foretrace.capture.aten import full_name, geometry, kind_of
from foretrace.capture.plugins import OPS, PLUGINS, base, installed
from foretrace.capture.recorder import Recorder, record
from foretrace.capture.rungs import Rung, climb
from foretrace.capture.unknown import EVEN
from foretrace.ir import ForetraceError, Graph, Op, OpKind, Role, evaluate_dim

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "bfloat16"}
MIXTRAL = SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN = SMALL | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
QWEN |= {"head_dim": 16}
MLA = SMALL | {"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32}
MLA |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 8, "n_group": 2}
MLA |= {"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "first_k_dense_replace": 1}
MAMBA = {"model_type": "mamba", "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 128}
MAMBA2 = MAMBA | {"model_type": "mamba2", "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16}
RWKV = {"model_type": "rwkv", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
NEXT = QWEN | {"model_type": "qwen3_next", "linear_num_key_heads": 2, "linear_num_value_heads": 4}
NEXT |= {"linear_key_head_dim": 16, "linear_value_head_dim": 24, "layer_types": ["linear_attention", "full_attention"]}


def captured(folder: Path, config: dict[str, Any], **arguments: Any) -> Graph:
    (folder / "config.json").write_text(json.dumps(config))
    return capture_graph(str(folder), **arguments)


def ops_of(graph: Graph, kind: OpKind) -> list[Op]:
    return [op for op in graph.ops if op.kind is kind]


class Attention(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


def test_attention_has_a_backward_of_one_operator_with_torchs_flops() -> None:
    """The five matmuls of the backward, as torch counts its own SDPA kernels on the CPU."""
    shapes = ((2, 4, 16, 24), (2, 4, 32, 24), (2, 4, 32, 40))
    recorder = Recorder()
    meta = [torch.empty(s, device="meta", requires_grad=True) for s in shapes]
    with recorder, installed(root := Attention()):
        root(*meta).sum().backward()
    ops = [op for op in recorder.recording.ops if kind_of(op.function) is OpKind.ATTENTION]
    assert [full_name(op.function) for op in ops] == [
        "aten.scaled_dot_product_attention.default",
        "aten._scaled_dot_product_flash_attention_backward.default",
    ]
    assert all(op.literals["dropout_p"] == 0.1 for op in ops)
    assert [t.grad.shape for t in meta if t.grad is not None] == [t.shape for t in meta]
    scores = 2 * 4 * 16 * 32
    counted = [2 * scores * (24 + 40), 2 * scores * (3 * 24 + 2 * 40)]
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    out = (2, 4, 16, 40)
    assert counted == [sdpa_flop_count(*shapes), sdpa_backward_flop_count(out, *shapes)]
    assert [work_of(recorder, op).matrix_flops for op in ops] == counted


def work_of(recorder: Recorder, op: Any) -> Any:
    from foretrace.capture.build import _tensor
    from foretrace.ir import op_work

    def seen(t: int) -> Any:
        raw = recorder.recording.tensors[t]
        return _tensor(t, raw, raw.shape, True, recorder.recording)

    ins, outs = [seen(t) for t in op.inputs], [seen(t) for t in op.outputs]
    kind = kind_of(op.function)
    return op_work(kind, full_name(op.function), geometry(op.function, kind, ins, outs, op.literals), ins, outs)


@pytest.mark.parametrize("phase", ["forward", "decode"])
@pytest.mark.parametrize(("config", "topk", "width"), [(MIXTRAL, 2, 96), (QWEN, 3, 32), (MLA, 2, 40)])
def test_experts_are_grouped_matmuls_over_the_routed_rows(
    tmp_path: Path, config: dict[str, Any], topk: int, width: int, phase: str
) -> None:
    graph = captured(tmp_path, config, phase=phase)
    up, down = ops_of(graph, OpKind.GROUPED_MATMUL)[:2]
    for batch, seq in ((2, 33), (3, 1)):
        at = {"batch": batch, "seq": seq, "context": 50}
        tokens = batch * (1 if phase == "decode" else seq)
        for op, n, k in ((up, 2 * width, 64), (down, 64, width)):
            a = {name: evaluate_dim(value, at) for name, value in op.attributes.items()}
            assert a == {"b": 1, "m": tokens * topk, "n": n, "k": k, "groups": 8, "tokens": tokens, "topk": topk} | {
                "experts": 8
            }
            assert evaluate_dim(op.work.matrix_flops, at) == 2 * tokens * topk * n * k
            weights = 2 * n * k * min(8, tokens * topk)  # bfloat16, of the experts that a row came to
            assert evaluate_dim(op.work.bytes_read, at) == weights + 2 * tokens * topk * k + 4 * 8
    assert EVEN in graph.metadata.values()
    assert graph.metadata["rung"] == "sdpa"


def test_flops_of_experts_equal_those_of_transformers_own_loop(tmp_path: Path) -> None:
    """The unpatched eager model on the CPU, counted by torch: every row goes through its experts once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    graph = captured(tmp_path, MIXTRAL)
    config = AutoConfig.from_pretrained(tmp_path, experts_implementation="eager", attn_implementation="sdpa")
    config._experts_implementation = "eager"
    root = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokens = torch.randint(0, 128, (2, 9))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        root(input_ids=tokens, use_cache=False)
    attention = 2 * 2 * 2 * 4 * 9 * 9 * (16 + 16)  # torch counts none for its CPU flash kernel
    assert graph.flops({"batch": 2, "seq": 9}) == counter.get_total_flops() + attention


def test_gradients_of_experts_take_twice_the_flops_of_the_forward() -> None:
    recorder = Recorder()
    x, weight = (torch.empty(s, device="meta", requires_grad=True) for s in ((30, 16), (4, 16, 24)))
    with recorder:
        out = torch.ops.foretrace.grouped_mm(x, weight, torch.zeros(4, dtype=torch.int32), 3, 4)
        out.sum().backward()
    flops = [work_of(recorder, op).matrix_flops for op in recorder.recording.ops if "grouped" in str(op.function)]
    assert flops == [2 * 30 * 16 * 24] * 3
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape


def test_experts_that_return_rows_as_they_are_cost_nothing() -> None:
    """Of 6 experts 4 have weights (LongCat's zero experts): two thirds of the rows are multiplied."""
    recorder = Recorder()
    x, weight = torch.empty(30, 16, device="meta"), torch.empty(4, 16, 24, device="meta")
    with recorder:
        torch.ops.foretrace.grouped_mm(x, weight, torch.zeros(4, dtype=torch.int32), 3, 6)
    assert work_of(recorder, recorder.recording.ops[-1]).matrix_flops == 2 * 20 * 16 * 24


LLAMA4 = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16, "interleave_moe_layer_step": 1}
LONGCAT = MLA | {"num_layers": 1, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 40, "zero_expert_num": 4}
DBRX = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 256}
DBRX |= {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}
SWITCH = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
SWITCH |= {"num_experts": 4, "vocab_size": 128, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
NLLB = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_layers": 1, "decoder_layers": 1}
NLLB |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 4, "vocab_size": 128}
LEAVES = {
    "dbrx": DBRX | {"ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
    "jetmoe": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "llama4_text": LLAMA4,
    "longcat_flash": LONGCAT | {"moe_topk": 2, "head_dim": 8},
    "nllb-moe": NLLB | {"encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "switch_transformers": SWITCH,
}


@pytest.mark.parametrize("kind", LEAVES)
def test_classes_that_bypass_the_interface_run_grouped_too(tmp_path: Path, kind: str) -> None:
    graph = captured(tmp_path, LEAVES[kind] | {"model_type": kind})
    grouped = ops_of(graph, OpKind.GROUPED_MATMUL)
    assert len(grouped) >= 2
    assert all(op.attributes["groups"] in (4, 8) for op in grouped)


@pytest.mark.parametrize(
    ("config", "name", "ops_a_layer"),
    [
        (MAMBA, "mamba_ssm.selective_scan_fn", 1),
        (MAMBA2, "mamba_ssm.mamba_chunk_scan_combined", 1),
        (RWKV, "rwkv.wkv", 1),
        (NEXT, "fla.chunk_gated_delta_rule", 0.5),
    ],
)
def test_a_scan_is_one_operator(tmp_path: Path, config: dict[str, Any], name: str, ops_a_layer: float) -> None:
    graph = captured(tmp_path, config)
    assert set(graph.symbols) == {"batch", "seq"}
    assert sum(op.name == name for op in graph.ops) == 2 * ops_a_layer
    assert len(graph.ops) < 400


def test_decode_of_a_scan_reads_and_writes_its_state(tmp_path: Path) -> None:
    graph = captured(tmp_path, MAMBA, phase="decode")
    update = next(op for op in graph.ops if op.name == "mamba_ssm.selective_state_update")
    assert update.attributes["length"] == 1
    state = graph.tensors[update.outputs[1]]
    assert state.role is Role.KV_CACHE or graph.tensors[update.inputs[-1]].role is Role.KV_CACHE
    assert state.storage == graph.tensors[update.inputs[-1]].storage


def scans(config: dict[str, Any], folder: Path, batch: int, seq: int) -> tuple[Any, ...]:
    graph = captured(folder, config)
    work = next(op.work for op in graph.ops if op.kind is OpKind.SCAN and "algorithm" in op.attributes)
    flops = (work.matrix_flops, work.vector_flops, work.special_flops)
    return tuple(evaluate_dim(f, {"batch": batch, "seq": seq}) for f in flops)


def test_work_of_scans_by_hand(tmp_path: Path) -> None:
    tokens, chunk = 3 * 40, 16
    assert scans(MAMBA, tmp_path, 3, 40) == (0, tokens * 128 * (6 * 8 + 3), tokens * 128 * (8 + 2))
    matrix = 2 * tokens * (chunk * 8 * 2 + 8 * (chunk * 16 + 2 * 8 * 16))
    assert scans(MAMBA2, tmp_path, 3, 40)[0] == matrix
    assert scans(RWKV, tmp_path, 3, 40) == (0, 18 * tokens * 64, 5 * tokens * 64)
    per_token = 2 * (40 * (3 * 16 + 2 * 24) + 3 * 16 * 24) + 2 * 40 * 40 // 3  # one chunk of 40, not of 64
    assert scans(NEXT, tmp_path, 3, 40)[0] == tokens * 4 * per_token


def test_a_scan_trains_with_one_backward_operator() -> None:
    recorder = Recorder()
    x, dt = (torch.empty(2, 16, 9, device="meta", requires_grad=True) for _ in range(2))
    a, b = torch.empty(16, 4, device="meta"), torch.empty(2, 4, 9, device="meta")
    with recorder:
        out, _ = torch.ops.foretrace.selective_scan(x, dt, a, b, b, None, None, None)
        out.sum().backward()
    forward, backward = (op for op in recorder.recording.ops if kind_of(op.function) is OpKind.SCAN)
    assert full_name(backward.function) == "mamba_ssm.selective_scan_fn_backward"
    assert work_of(recorder, backward).vector_flops == 3 * work_of(recorder, forward).vector_flops
    assert [t.grad.shape for t in (x, dt) if t.grad is not None] == [x.shape, dt.shape]


def test_absorbed_latent_attention_reads_the_latents_once(tmp_path: Path) -> None:
    """Section 2.1.2 of DeepSeek-V2: scores and values over rank, the up-projections on the query's side."""
    plain, absorbed = (captured(tmp_path, MLA, phase="decode", attention=a) for a in ("sdpa", "absorbed"))
    at = {"batch": 3, "context": 1000}
    op = ops_of(absorbed, OpKind.ATTENTION)[0]
    assert evaluate_dim(op.work.matrix_flops, at) == 2 * 3 * 4 * 1001 * (32 + 8 + 32)
    query = 2 * 3 * 4 * (32 + 8)
    assert evaluate_dim(op.work.bytes_read, at) == 2 * 3 * 1001 * (32 + 8) + query
    expansion = 2 * 3 * 1001 * 32 * 4 * (16 + 12)
    up_projections = 2 * 3 * 4 * 32 * (16 + 12)
    heads = [2 * 3 * 4 * 1001 * w for w in (16 + 8 + 12, 32 + 8 + 32)]
    assert plain.flops(at) - absorbed.flops(at) == 2 * (expansion + heads[0] - up_projections - heads[1])
    assert absorbed.metadata["rung"] == "absorbed"


@pytest.mark.parametrize(
    ("config", "phase", "message"),
    [(MIXTRAL, "decode", "no latent attention to absorb"), (MLA, "forward", "is how engines decode")],
)
def test_absorbed_attention_is_refused_where_it_means_nothing(
    tmp_path: Path, config: dict[str, Any], phase: str, message: str
) -> None:
    with pytest.raises(ForetraceError, match=message):
        captured(tmp_path, config, phase=phase, attention="absorbed")


def test_a_model_without_sdpa_keeps_its_attention_whole(tmp_path: Path) -> None:
    config = SMALL | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 32, "attn_logit_softcapping": 30.0}
    graph = captured(tmp_path, config)
    assert graph.metadata["rung"] == "plug-in attention"
    sliding, full = ops_of(graph, OpKind.ATTENTION)
    assert (sliding.attributes.get("window"), full.attributes.get("window")) == (32, None)
    assert all(op.attributes["softcap"] == 30.0 and op.attributes["causal"] for op in (sliding, full))


def test_the_chain_says_what_each_rung_said() -> None:
    def fails(rung: Rung) -> Graph:
        raise (ValueError("no such thing") if rung.name == "a" else KeyError("x"))

    with pytest.raises(ForetraceError, match=r"m: its forward failed .*\(a: ValueError: no such thing; b, c: KeyError"):
        climb("m", [Rung(n, "sdpa") for n in "abc"], fails)


class Peeks(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(x).all() or torch.isnan(x).any():
            raise ValueError("not finite")
        chosen = x.topk(2, dim=-1).indices
        counts = [int((chosen == e).sum()) for e in range(x.shape[-1])]
        assert counts == [2 * x.shape[0] // x.shape[-1]] * x.shape[-1]
        rows = (x.sum(-1) > 0).nonzero()
        return x[rows[:, 0]] * x.max().item()


def test_unknown_values_are_assumed_and_noted() -> None:
    x = torch.empty(12, 4, device="meta")
    recording = record(root := Peeks(), lambda: {"y": root(x)}, {"x": x})
    assert recording.tensors[recording.ops[-1].outputs[0]].shape == (12, 4)
    assert len(recording.notes) == 4


def test_every_operator_of_a_plugin_is_described() -> None:
    defined = {str(n) for n in torch._C._dispatch_get_all_op_names() if str(n).startswith("foretrace::")}
    assert {n for n in defined if n not in OPS and not n.startswith("foretrace::test_")} == {
        f"{n}_backward" for n in defined if f"{n}_backward" in defined and n in OPS and not OPS[n].backward
    }
    assert Counter(n for p in PLUGINS for n in p.OPS).most_common(1)[0][1] == 1


@pytest.mark.checkout
def test_the_recipe_in_the_documentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "recipe"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/plugins.md", "exec"), names)
    assert base.OpSpec is names["OpSpec"]
    assert names["graph_op"] == ("mykernels.rotary", OpKind.ELEMENTWISE)


def test_a_kernel_that_takes_an_empty_list_has_a_backward(tmp_path: Path) -> None:
    rwkv = {"model_type": "rwkv", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 64}
    (tmp_path / "config.json").write_text(json.dumps(rwkv))
    graph = capture_graph(str(tmp_path), phase="train")
    scans = [op.phase for op in graph.ops if op.kind is OpKind.SCAN and op.attributes.get("backward")]
    assert scans == ["backward"] * 2
