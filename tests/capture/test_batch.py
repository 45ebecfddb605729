"""A batch is open wherever it can be: copies that one sequence does not need, images looped over, lists of tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from foretrace.capture import capture_graph
from foretrace.capture.aten import full_name, kind_of
from foretrace.capture.build import merge
from foretrace.capture.loops import roll
from foretrace.capture.models import PretrainedModel
from foretrace.capture.pairing import correspond
from foretrace.capture.phases import make_step
from foretrace.capture.recorder import Recorder, Recording, record, record_settled
from foretrace.capture.rejoin import rejoin
from foretrace.capture.symbolic import DimSolver, SymbolicError
from foretrace.ir import Graph, GraphError, OpKind, UnknownNameError, evaluate_dim

TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 120, "tie_word_embeddings": False}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 100},
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100},
    "gpt_neo": {
        "hidden_size": 64, "num_heads": 4, "num_layers": 2, "vocab_size": 100, "window_size": 256,
        "attention_types": [[["global", "local"], 1]],
    },
    "swin": {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    "qwen2_vl": {
        "text_config": TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        "vision_config": VISION, "image_token_id": 119,
    },
    "llava": {
        "image_token_index": 119, "text_config": TEXT | {"model_type": "llama"}, "vision_feature_layer": -1,
        "vision_config": TEXT | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
    },
}  # fmt: skip
CASES = [(n, "forward", 2 if n == "llava" else 1) for n in CONFIGS]
CASES += [(n, "decode", 1) for n in ("mpt", "bloom", "gpt_neo")]


def model_of(kind: str) -> PretrainedModel:
    return PretrainedModel(kind, AutoConfig.for_model(kind, **CONFIGS[kind]), "float32")


def made(graph: Graph, at: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """What every op that runs at *at* makes, views left out."""
    ran = [op for op in graph.ops if op.kind is not OpKind.VIEW and evaluate_dim(op.attributes.get("repeat", 1), at)]
    shapes = [(op.name, graph.tensors[t].shape) for op in ran for t in op.outputs]
    return [(name, tuple(evaluate_dim(d, at) for d in shape)) for name, shape in shapes]


def seen(recording: Recording) -> list[tuple[str, tuple[int, ...]]]:
    ran = [op for op in recording.ops if kind_of(op.function) is not OpKind.VIEW]
    return [(full_name(op.function), recording.tensors[t].shape) for op in ran for t in op.outputs]


@pytest.mark.parametrize(("kind", "phase", "least"), CASES)
def test_one_graph_is_exact_for_every_batch_it_answers(kind: str, phase: str, least: int) -> None:
    model = model_of(kind)
    graph = capture_graph(model, phase=phase)
    assert graph.symbols["batch"].minimum == least
    fixed = {n.removeprefix("fixed."): int(v) for n, v in graph.metadata.items() if n.startswith("fixed.")}
    for batch in (1, 2, 4):
        sizes = {"batch": batch, "seq": 41, "context": 27}
        if batch < least:
            with pytest.raises(GraphError, match="capture it again"):
                graph.bind({"batch": batch})
            continue
        at = graph.bind({n: v for n, v in sizes.items() if n in graph.symbols})
        root = model.build(None, graph.metadata["attention"])
        with torch.no_grad():
            step = make_step(root, model.config, phase, at | fixed, "meta", model.family)
        recording = roll(rejoin(record_settled(root, step.run, step.inputs)), batch)
        assert made(graph, at) == seen(recording)
        with torch.no_grad(), Recorder(), FlopCounterMode(display=False) as counter:
            step.run()
        assert graph.flops(at) == counter.get_total_flops() > 0


def test_a_copy_that_one_sequence_does_not_need_takes_no_work_then() -> None:
    graph = capture_graph(model_of("mpt"))
    copies = [op for op in graph.ops if "repeat" in op.attributes]
    assert copies
    assert {op.name for op in copies} == {"aten.clone.default"}
    assert f"skips {len(copies)} copies" in graph.metadata["note.copies"]
    for op in copies:
        assert evaluate_dim(op.work.bytes, {"batch": 1, "seq": 16}) == 0
        assert evaluate_dim(op.work.bytes, {"batch": 2, "seq": 16}) > 0


def test_a_batch_that_is_asked_for_is_the_one_that_is_captured() -> None:
    one = capture_graph(model_of("llava"), batch=1)
    assert "batch" not in one.symbols
    with pytest.raises(UnknownNameError, match="captured with batch=1; capture it again with --batch 8"):
        one.bind({"batch": 8})
    assert capture_graph(model_of("llava")).symbols["batch"].default == 2


def test_decode_that_mixes_the_sequences_of_a_batch_stays_at_one() -> None:
    config = AutoConfig.for_model("rwkv", hidden_size=32, num_hidden_layers=2, vocab_size=50, context_length=64)
    graph = capture_graph(PretrainedModel("rwkv", config, "float32"), phase="decode")
    assert "batch" not in graph.symbols
    assert any("mixes the sequences" in note for note in graph.metadata.values())


def runs_of(call: Callable[..., torch.Tensor], points: list[dict[str, int]]) -> list[Recording]:
    found = []
    for p in points:
        x = torch.empty(p["batch"], p["seq"], 8, device="meta")
        found.append(record(nn.Identity(), lambda x=x: {"y": call(x)}, {"x": x}))
    return found


@pytest.mark.parametrize("needed", [lambda b, s: s > 20, lambda b, s: b < 2], ids=["some lengths", "one sequence"])
def test_a_copy_that_the_batch_does_not_explain_is_refused(needed: Callable[[int, int], bool]) -> None:
    points = [{"batch": b, "seq": s} for b, s in ((3, 19), (5, 29), (7, 43), (1, 16))]
    runs = runs_of(lambda x: (x.clone() if needed(*x.shape[:2]) else x) * 2, points)
    pairs = [(r, correspond(runs[0], r) if i else {}) for i, r in enumerate(runs)]
    with pytest.raises(SymbolicError, match="copies a tensor in its body at some shapes only"):
        merge("m", "forward", {}, pairs, DimSolver(points, ["batch", "seq"]), {})


def test_of_several_copies_the_right_one_is_missed() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        a, b = x * 2, x[:, :, :1] * 3
        return (a.clone() if x.shape[0] > 1 else a) + b.clone()

    many, one = runs_of(call, [{"batch": 3, "seq": 19}, {"batch": 1, "seq": 29}])
    pairs = correspond(many, one)
    clones = [i for i, op in enumerate(many.ops) if op.function is torch.ops.aten.clone.default]
    assert [i in pairs for i in clones] == [False, True]


def test_pieces_put_together_again_are_one_copy() -> None:
    for batch in (1, 3):
        (recording,) = runs_of(lambda x: torch.cat(list(x * 2)) + 1, [{"batch": batch, "seq": 5}])
        (joined,) = (op for op in rejoin(recording).ops if op.function is torch.ops.aten.cat.default)
        assert len(joined.inputs) == 1

    def one_is_read(x: torch.Tensor) -> torch.Tensor:
        pieces = list(x)
        return torch.cat(pieces)[:5] + pieces[0]

    (recording,) = runs_of(one_is_read, [{"batch": 3, "seq": 5}])
    assert rejoin(recording) is recording
    (recording,) = runs_of(lambda x: torch.cat(list(x)[::-1]), [{"batch": 3, "seq": 5}])
    assert rejoin(recording) is recording


def test_a_loop_over_the_batch_is_one_body() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([(piece * 2).exp() for piece in torch.split(x * 2, 1)]) + 1

    (recording,) = runs_of(call, [{"batch": 3, "seq": 5}])
    rolled = roll(recording, 3)
    assert [(op.function._schema.name.split("::")[1], op.times, op.pieces) for op in rolled.ops] == [
        ("mul", 1, 1), ("split", 1, 1), ("mul", 3, 1), ("exp", 3, 1), ("cat", 1, 3), ("add", 1, 1),
    ]  # fmt: skip
    assert roll(recording, 5) is recording


def test_rounds_that_differ_or_depend_on_each_other_are_no_loop() -> None:
    def chained(x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for _ in range(3):
            states.append(states[-1].exp())
        return torch.cat(states[1:])

    def first_is_read(x: torch.Tensor) -> torch.Tensor:
        rounds = [x.exp() for _ in range(3)]
        return torch.cat(rounds) + rounds[0].repeat(3, 1, 1)

    def literals_differ(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * n for n in (2, 3, 4)])

    for call in (chained, first_is_read, literals_differ):
        (recording,) = runs_of(call, [{"batch": 3, "seq": 5}])
        assert roll(recording, 3) is recording


def test_the_way_to_another_size_is_the_flag_that_there_is() -> None:
    fixed = Graph("g", "forward", {}, (), (), {"fixed.batch": "1", "fixed.tokens": "16"})
    with pytest.raises(UnknownNameError, match="capture it again with --batch 2"):
        fixed.bind({"batch": 2})
    with pytest.raises(UnknownNameError, match="capture it again with --dim tokens=32"):
        fixed.bind({"tokens": 32})
