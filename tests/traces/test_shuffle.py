"""Alignment with a known answer: a real model's step renamed, nested, split, fused, permuted; no wrong match."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import Graph, load_graph
from foretrace.replay import replay_graph
from foretrace.traces import Alignment, Trace, align_traces, diff_traces
from foretrace.traces.compare.operators import canonical_name
from tests.traces.shuffles import Edits, Shuffled, shuffle

Step = tuple[Graph, Trace]
LEAST_FOUND = 0.93  # of the operators that were recorded at all


@pytest.fixture(scope="session")
def gpt2(gpt2_graph_file: Path) -> Step:
    graph = load_graph(gpt2_graph_file)
    return graph, replay_graph(graph, "a100-sxm-40gb", batch=2, seq=128).trace


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """Forward, backward and AdamW of a two-layer mixture of experts."""
    pytest.importorskip("transformers")
    return _training(tmp_path_factory.mktemp("moe"))


@cache
def _training(folder: Path) -> Step:
    import json

    from foretrace import capture_graph

    config = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    graph = capture_graph(str(folder), phase="train", optimizer="adamw")
    return graph, replay_graph(graph, "a100-sxm-40gb", batch=2, seq=32).trace


def wrong(found: Alignment, predicted: Trace, made: Shuffled, known: set[str]) -> list[tuple[str, str, str]]:
    """Pairs that are not in the answer; operators of one module that nothing *known* tells apart are one."""
    rows = {int(o): i for i, o in enumerate(predicted.op_id.tolist()) if o >= 0}
    twins: dict[tuple[str, ...], set[int]] = {}
    for op, partners in made.answer.items():
        twins.setdefault(_identity(predicted, rows[op], known), set()).update(partners)
    return [
        (predicted.name[i], made.trace.name[j], predicted.module[i])
        for i, j in found.pairs.tolist()
        if j not in twins.get(_identity(predicted, i, known), set())
    ]


def _identity(trace: Trace, row: int, known: set[str]) -> tuple[str, ...]:
    return (canonical_name(trace.name[row]), *(getattr(trace, c)[row] for c in sorted(known - {"name"})))


EDITS = {
    "as it is": Edits(),
    "on a CPU": Edits(device=False),
    "permuted": Edits(swapped=0.5),
    "dropped and doubled": Edits(dropped=0.1, doubled=0.1),
    "all at once": Edits(dropped=0.05, doubled=0.05, swapped=0.3),
    "fused": Edits(fused=0.5),
    "fused, without modules": Edits(fused=0.5, modules=False),
    "without modules": Edits(modules=False, dropped=0.03),
    "without phases": Edits(phases=False, swapped=0.3, dropped=0.03),
    "without shapes": Edits(shapes=False, dropped=0.03),
    "names alone": Edits(shapes=False, modules=False, phases=False),
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model", ["gpt2", "training"])
def test_no_match_is_wrong(request: pytest.FixtureRequest, model: str, edits: Edits, seed: int) -> None:
    graph, predicted = request.getfixturevalue(model)
    made = shuffle(predicted, graph, edits, seed)
    found = align_traces(predicted, made.trace)
    known = {"name", "module", "phase"} | ({"shapes"} if edits.shapes else set())
    assert wrong(found, predicted, made, known) == []
    rows = {int(o): i for i, o in enumerate(predicted.op_id.tolist()) if predicted.kind[i] != "launch"}
    matched = set(found.pairs[:, 0].tolist())
    assert np.mean([rows[o] in matched for o in made.answer]) > LEAST_FOUND


@pytest.mark.parametrize("seed", range(2))
def test_no_second_counts_twice(training: Step, seed: int) -> None:
    graph, predicted = training
    made = shuffle(predicted, graph, Edits(fused=0.5, doubled=0.1), seed)
    diff = diff_traces(predicted, made.trace)
    kernels = made.trace.duration_s[made.trace.kind.isin(["kernel"])].sum()
    for table in (diff.by_module, diff.by_kind, diff.by_shape):
        assert sum(r.measured_s for r in table) == pytest.approx(kernels)
        assert sum(r.predicted_s for r in table) == pytest.approx(diff.alignment.predicted_seconds.sum())
    lonely = sum(u.seconds for u in diff.unmatched_measured)
    assert sum(op.measured_s for op in diff.by_op) + lonely == pytest.approx(kernels)
    assert diff.matched_share == pytest.approx(1 - lonely / kernels)
    assert sum(c.difference_s for c in diff.causes) == pytest.approx(kernels - diff.alignment.predicted_seconds.sum())


@given(st.floats(-1e3, 1e3), st.sampled_from([0.25, 0.5, 2.0, 1024.0]), st.integers(0, 5))
@settings(max_examples=15)
def test_neither_a_shift_nor_a_slower_clock_changes_a_match(gpt2: Step, shift: float, scale: float, seed: int) -> None:
    graph, predicted = gpt2
    events = shuffle(predicted, graph, Edits(dropped=0.05, doubled=0.05, swapped=0.2), seed).trace
    shift = float(np.round(shift))
    moved = events.replace(start_s=events.start_s * scale + shift, duration_s=events.duration_s * scale)
    assert np.array_equal(align_traces(predicted, events).pairs, align_traces(predicted, moved).pairs)


def test_two_measured_traces_match_the_same_whichever_comes_first(training: Step) -> None:
    graph, predicted = training
    a, b = (shuffle(predicted, graph, Edits(), seed).trace for seed in (1, 2))
    there, back = align_traces(a, b), align_traces(b, a)
    assert there.matched_share > 0.99
    assert sorted(map(tuple, there.pairs.tolist())) == sorted((j, i) for i, j in back.pairs.tolist())


def test_another_model_is_not_flattered(gpt2: Step, training: Step) -> None:
    for (_, predicted), (graph, other) in ((gpt2, training), (training, gpt2)):
        events = shuffle(other, graph, Edits(), 0).trace
        assert align_traces(predicted, events).matched_share < 0.1
        without = events.replace(module="", phase="")
        assert align_traces(predicted, without).matched_share < 0.1
