"""Alignment: known edits are recovered, wrong pairs are not made, nested calls are cut where they should be."""

import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.traces import Alignment, Trace, align_traces, diff_traces
from foretrace.traces import lcs as lcs_module
from foretrace.traces.compare.operators import canonical_name, find_operators
from foretrace.traces.lcs import exact_pairs, match_sequences


def predicted(*ops: tuple[str, str, str], seconds: float = 1.0) -> Trace:
    """One event per operator (name, module, shapes), one second each."""
    return Trace.from_rows(
        [
            {"name": n, "module": m, "shapes": s, "op_id": i, "start_s": i * seconds, "duration_s": seconds}
            | {"kind": "matmul", "stream": "compute"}
            for i, (n, m, s) in enumerate(ops)
        ]
    )


def measured(*events: tuple[str, str, str, float, float]) -> Trace:
    """Nested calls (name, module, shapes, start, duration) of one thread."""
    rows = [
        {"name": n, "module": m, "shapes": s, "start_s": t, "duration_s": d, "kind": "cpu_op", "stream": "host"}
        for n, m, s, t, d in events
    ]
    return Trace.from_rows(rows).with_parents()


def flat(*ops: tuple[str, str, str]) -> Trace:
    return measured(*((*op, float(i), 1.0) for i, op in enumerate(ops)))


def names(alignment: Alignment, a: Trace, b: Trace) -> list[tuple[str, str]]:
    return [(a.name[i], b.name[j]) for i, j in alignment.pairs.tolist()]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("aten.addmm.default", "aten::addmm"),
        ("aten::addmm", "aten::addmm"),
        ("aten::add.Tensor", "aten::add"),
        ("aten.add_.Tensor", "aten::add_"),
        ("_c10d_functional.all_reduce.default", "_c10d_functional::all_reduce"),
        ("onnx::Gemm", "onnx::Gemm"),
        ("ProfilerStep#3", "ProfilerStep#3"),
        ("Optimizer.step#SGD.step.x", "Optimizer.step#SGD.step.x"),
    ],
)
def test_one_name_for_captured_and_profiled(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


LINEAR = ("aten.addmm.default", "net.fc", "[4][2,3][3,4]")
RELU = ("aten.relu.default", "net.act", "[2,4]")


def test_calls_are_cut_at_captured_names_and_keep_what_lies_below() -> None:
    events = measured(
        ("aten::linear", "net.fc", "[2,3][4,3][4]", 0.0, 5.0), ("aten::t", "net.fc", "[4,3]", 0.0, 1.0),
        ("aten::transpose", "net.fc", "[4,3]", 0.2, 0.5), ("aten::addmm", "net.fc", "[4][2,3][3,4]", 1.0, 3.0),
        ("aten::copy_", "net.fc", "[2,4][2,4]", 1.5, 1.0), ("aten::relu", "net.act", "[2,4]", 6.0, 2.0),
        ("aten::clamp_min", "net.act", "[2,4]", 6.5, 1.0), ("aten::dropout", "net", "[2,4]", 9.0, 1.0),
    )  # fmt: skip
    ops = predicted(("aten.t.default", "net.fc", "[4,3]"), LINEAR, RELU)
    found = align_traces(ops, events)
    assert names(found, ops, events) == [
        ("aten.t.default", "aten::t"), ("aten.addmm.default", "aten::addmm"), ("aten.relu.default", "aten::relu"),
    ]  # fmt: skip
    assert found.confidence.tolist() == pytest.approx([1.0] * 3)
    seconds = dict(zip(events.name.tolist(), found.measured_seconds.tolist(), strict=True))
    assert seconds["aten::addmm"] == 4.0  # its own 3 s and the second that aten::linear takes around it
    assert (seconds["aten::t"], seconds["aten::linear"], seconds["aten::copy_"]) == (1.0, 0.0, 0.0)
    assert [events.name[i] for i in found.unmatched_measured] == ["aten::linear", "aten::dropout"]
    assert found.matched_share == pytest.approx(7 / 8)


def test_calls_around_one_operator_and_their_views_are_its_dispatch() -> None:
    events = measured(
        ("aten::linear", "net.fc", "", 0.0, 6.0), ("aten::t", "net.fc", "", 0.5, 2.0),
        ("aten::transpose", "net.fc", "", 1.0, 1.0), ("aten::addmm", "net.fc", "", 3.0, 2.0),
        ("aten::view", "net.fc", "", 7.0, 1.0),
    )  # fmt: skip
    found = align_traces(predicted(LINEAR), events)
    assert found.measured_seconds.tolist() == [0.0, 0.0, 0.0, 6.0, 1.0]
    assert found.matched_share == pytest.approx(6 / 7)


def test_device_time_of_an_operator_is_the_sum_of_its_kernels() -> None:
    rows = [
        {"name": "aten::linear", "kind": "cpu_op", "start_s": 0, "duration_s": 9, "stream": "host", "external_id": 1},
        {"name": "aten::addmm", "kind": "cpu_op", "start_s": 1, "duration_s": 5, "stream": "host", "external_id": 2,
         "module": "net.fc", "shapes": "[4][2,3][3,4]"},
        {"name": "aten::resize", "kind": "cpu_op", "start_s": 2, "duration_s": 1, "stream": "host", "external_id": 3},
        {"name": "split", "kind": "kernel", "start_s": 3, "duration_s": 10, "stream": "gpu", "external_id": 2},
        {"name": "reduce", "kind": "kernel", "start_s": 13, "duration_s": 20, "stream": "gpu", "external_id": 2},
        {"name": "fill", "kind": "memset", "start_s": 33, "duration_s": 3, "stream": "gpu", "external_id": 3},
        {"name": "after", "kind": "copy", "start_s": 36, "duration_s": 1, "stream": "gpu", "external_id": 1},
        {"name": "nobody", "kind": "kernel", "start_s": 37, "duration_s": 6, "stream": "gpu"},
    ]  # fmt: skip
    events = Trace.from_rows(rows).with_parents()
    found = align_traces(predicted(LINEAR), events)
    assert found.pairs.tolist() == [[0, 1]]
    assert found.measured_seconds.tolist() == [1.0, 33.0, 0, 0, 0, 0, 0, 6.0]
    assert found.matched_share == pytest.approx(33 / 40)


def test_weaker_evidence_is_accepted_with_less_confidence() -> None:
    ops = predicted(LINEAR, RELU, LINEAR, RELU)
    events = flat(
        ("aten::addmm", "net.fc", "[4][9,3][3,4]"), ("aten::relu", "", "[2,4]"), ("aten::addmm", "net.fc", ""),
        ("aten::relu", "", ""),
    )  # fmt: skip
    found = align_traces(ops, events)
    assert found.pairs.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert found.confidence.tolist() == pytest.approx([0.7, 0.6, 0.7, 0.3])


def test_wrapped_module_paths_are_the_same_modules() -> None:
    ops = [("aten.mm.default", f"layers.{i}", "[2,2][2,2]") for i in range(4)]
    found = align_traces(predicted(*ops), flat(*(("aten::mm", f"module.model.layers.{i}", s) for i, (_, _, s) in
                                                 enumerate(ops))))  # fmt: skip
    assert found.confidence.tolist() == pytest.approx([1.0] * 4)


def test_views_never_pull_other_operators_out_of_place() -> None:
    view, mm = ("aten.view.default", "m", "[4]"), ("aten.mm.default", "m", "[2,2][2,2]")
    ops = predicted(mm, view, view, view)
    events = flat(
        ("aten::view", "m", "[4]"), ("aten::view", "m", "[4]"), ("aten::view", "m", "[4]"), ("aten::mm", *mm[1:])
    )
    found = align_traces(ops, events)
    assert [0, 3] in found.pairs.tolist()


def test_an_operator_captured_as_one_takes_what_ran_in_its_place() -> None:
    q, o = ("aten.mm.default", "attn.q", "[2,2][2,2]"), ("aten.mm.default", "attn.o", "[2,2][2,2]")
    ops = predicted(q, ("foretrace.attention.default", "attn", "[2,2]"), o)
    inner = [("aten::bmm", "attn", "[2,2]"), ("aten::softmax", "attn", "[2,2]"), ("aten::other", "norm", "[2,2]")]
    found = align_traces(ops, flat(("aten::mm", *q[1:]), *inner, ("aten::mm", *o[1:])))
    assert found.pairs.tolist() == [[0, 0], [1, 1], [1, 2], [2, 4]]
    assert found.unmatched_measured.tolist() == [3]


def test_another_model_matches_next_to_nothing_and_does_not_crash() -> None:
    ops = predicted(*((f"aten.{n}.default", f"gpt.h.{i}", f"[{i},768]") for i in range(20) for n in ("mm", "add")))
    other = flat(*((f"aten::{n}", f"model.layers.{i}", f"[{i},4096]") for i in range(30) for n in ("add", "mm", "mul")))
    assert align_traces(ops, other).matched_share < 0.05


@pytest.mark.parametrize("empty", [(0, 0), (0, 3), (3, 0)])
def test_empty_traces(empty: tuple[int, int]) -> None:
    a, b = predicted(*[LINEAR] * empty[0]), flat(*[("aten::addmm", *LINEAR[1:])] * empty[1])
    found = align_traces(a, b)
    assert found.pairs.shape == (0, 2)
    assert found.matched_share == 0.0
    assert (len(found.unmatched_predicted), len(found.unmatched_measured)) == empty


def test_every_common_rank_is_aligned_on_its_own() -> None:
    a = predicted(LINEAR, RELU, LINEAR, RELU).replace(rank=[0, 0, 1, 1], op_id=[0, 1, 0, 1])
    b = flat(("aten::relu", *RELU[1:]), ("aten::addmm", *LINEAR[1:]), ("aten::relu", *RELU[1:]))
    found = align_traces(a, b.replace(rank=[1, 0, 0]))
    assert found.pairs.tolist() == [[0, 1], [1, 2], [3, 0]]
    assert found.unmatched_predicted.tolist() == [2]
    assert found.matched_share == 1.0


def test_a_phase_that_both_sides_know_is_never_crossed() -> None:
    a = predicted(LINEAR, LINEAR).replace(phase=["forward", "backward"])
    b = flat(*[("aten::addmm", *LINEAR[1:])] * 2)
    assert align_traces(a, b.replace(phase=["backward", "optimizer"])).pairs.tolist() == [[1, 0]]
    assert align_traces(a, b.replace(phase=["", "backward"])).pairs.tolist() == [[0, 0], [1, 1]]


def test_phases_that_run_side_by_side_keep_their_own_order() -> None:
    ops = [(f"aten.{n}.default", "", f"[{k}]") for k, n in enumerate(("mm", "add", "mm", "add"))]
    a = predicted(*ops).replace(phase=["forward", "forward", "backward", "backward"])
    b = flat(*((canonical_name(n), m, s) for n, m, s in (ops[2], ops[0], ops[3], ops[1])))
    found = align_traces(a, b.replace(phase=["backward", "forward", "backward", "forward"]))
    assert found.pairs.tolist() == [[0, 1], [1, 3], [2, 0], [3, 2]]


@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn"])
def test_attention_is_one_operator_whichever_library_does_it(backend: str) -> None:
    a = predicted(("aten._scaled_dot_product_flash_attention_backward.default", "attn", "[2,2]"))
    b = flat((f"aten::_scaled_dot_product_{backend}_attention_backward", "attn", "[2,2]"))
    assert align_traces(a, b).pairs.tolist() == [[0, 0]]


def test_another_product_in_the_same_module_is_matched_with_less_confidence() -> None:
    ops = predicted(LINEAR, ("aten.bmm.default", "head", "[5,2,3][5,3,4]"))
    found = align_traces(ops, flat(("aten::addmm", *LINEAR[1:]), ("aten::mm", "head", "[10,3][3,4]")))
    assert found.pairs.tolist() == [[0, 0], [1, 1]]
    assert found.confidence.tolist() == pytest.approx([1.0, 0.55])


def test_a_profilers_out_argument_is_no_other_shape() -> None:
    ops = [("aten.mm.default", "", f"[{i},2][2,4]") for i in range(1, 4)]
    found = align_traces(predicted(*ops), flat(*(("aten::mm", "", f"{s}[{s[1]},4]") for _, _, s in ops)))
    assert found.confidence.tolist() == pytest.approx([0.6] * 3)


def test_sizes_that_depend_on_the_data_are_matched_in_their_place() -> None:
    known = [("aten::mm", "", f"[{i},8]") for i in range(1, 9)]
    a = flat(*known[:4], ("aten::index_select", "", "[951,16]"), *known[4:])
    b = flat(*known[:4], ("aten::index_select", "", "[1705,16]"), *known[4:])
    assert align_traces(a, b).pairs.tolist() == [[i, i] for i in range(9)]
    other = flat(*known[:4], ("aten::index_select", "", "[1705]"), *known[4:])
    assert [4, 4] not in align_traces(a, other).pairs.tolist()


def test_collectives_are_matched_one_by_one_whatever_their_sizes() -> None:
    def rank(size: int, shift: int) -> Trace:
        names = ["aten::mm", "record_param_comms", "aten::mm", "aten::add", "record_param_comms", "aten::mm"]
        order = [0, 1, 2, 3, 4, 5] if shift else [0, 2, 1, 3, 5, 4]
        return flat(*((names[i], "", f"[{size + i}]" if "comms" in names[i] else f"[{i}]") for i in order))

    found = align_traces(rank(100, 0), rank(900, 1))
    assert found.pairs.tolist() == [[0, 0], [1, 2], [2, 1], [3, 3], [4, 5], [5, 4]]


POINTWISE = [("aten.add.Tensor", "norm", "[2]"), ("aten.pow.Tensor_Scalar", "norm", "[2]"),
             ("aten.mean.dim", "norm", "[2]"), ("aten.mul.Tensor", "norm", "[2]")]  # fmt: skip


def test_a_fused_kernel_takes_the_operators_in_its_name_and_counts_once() -> None:
    ops = predicted(LINEAR, *POINTWISE, LINEAR)
    events = flat(
        ("aten::addmm", *LINEAR[1:]), ("triton_red_fused_add_mean_mul_pow_0", "", ""), ("aten::addmm", *LINEAR[1:])
    )
    found = align_traces(ops, events)
    assert found.pairs.tolist() == [[0, 0], [1, 1], [2, 1], [3, 1], [4, 1], [5, 2]]
    assert found.matched_share == 1.0
    diff = diff_traces(ops, events)
    (fused,) = (op for op in diff.by_op if op.predicted_ops > 1)
    assert (fused.name, fused.predicted_s, fused.measured_s) == (
        "fused(add.Tensor, pow.Tensor_Scalar, mean.dim, mul.Tensor)",
        4.0,
        1.0,
    )
    assert sum(r.measured_s for r in diff.by_module) == 3.0


def test_what_a_kernel_does_not_name_is_not_its() -> None:
    events = flat(("aten::addmm", *LINEAR[1:]), ("triton_poi_fused_add_pow_0", "", ""), ("aten::mul", "norm", "[2]"),
                  ("aten::addmm", *LINEAR[1:]))  # fmt: skip
    found = align_traces(predicted(LINEAR, *POINTWISE, LINEAR), events)
    assert found.pairs.tolist() == [[0, 0], [1, 1], [2, 1], [4, 2], [5, 3]]
    assert found.unmatched_predicted.tolist() == [3]


def test_a_predicted_fusion_takes_the_operators_that_ran_apart() -> None:
    ops = predicted(LINEAR, ("fused(add, pow, mean, mul)", "norm", ""), LINEAR)
    events = flat(("aten::addmm", *LINEAR[1:]), *((canonical_name(n), m, s) for n, m, s in POINTWISE),
                  ("aten::addmm", *LINEAR[1:]))  # fmt: skip
    assert align_traces(ops, events).pairs.tolist() == [[0, 0], [1, 1], [1, 2], [1, 3], [1, 4], [2, 5]]


def test_a_compiled_region_stands_for_what_left_no_events() -> None:
    rows = [
        {"name": "Torch-Compiled Region: 0/0", "start_s": 0.0, "duration_s": 10.0},
        {"name": "aten::addmm", "start_s": 1.0, "duration_s": 4.0, "shapes": LINEAR[2]},
    ]
    events = Trace.from_rows([row | {"kind": "cpu_op", "stream": "host"} for row in rows]).with_parents()
    found = align_traces(predicted(LINEAR, *POINTWISE), events)
    assert found.pairs.tolist() == [[0, 1], [1, 0], [2, 0], [3, 0], [4, 0]]
    assert found.measured_seconds.tolist() == [6.0, 4.0]


STEP = ["mul_", "lerp_", "mul_", "addcmul_", "sqrt", "div_", "add_", "addcdiv_"]


def optimizer(names: list[str]) -> Trace:
    return flat(*((f"aten::{n}", "", "") for n in names)).replace(phase="optimizer")


def test_an_optimizer_over_lists_is_matched_with_one_over_parameters() -> None:
    lists = predicted(*((f"aten._foreach_{n}.Scalar", "", "[3,3][5]") for n in STEP)).replace(phase="optimizer")
    loop = optimizer(STEP * 3)
    found = align_traces(lists, loop)
    assert sorted(map(tuple, found.pairs.tolist())) == sorted((i, i + 8 * k) for i in range(8) for k in range(3))
    assert diff_traces(lists, loop).matched_share == 1.0


def test_a_fused_optimizer_is_all_of_its_steps() -> None:
    lists = predicted(*((f"aten._foreach_{n}.Scalar", "", "[3,3][5]") for n in STEP)).replace(phase="optimizer")
    found = align_traces(lists, optimizer(["_fused_adamw_", "_fused_adamw_"]))
    assert sorted(set(found.pairs[:, 0].tolist())) == list(range(8))
    assert found.matched_share == 1.0
    assert len(diff_traces(lists, optimizer(["_fused_adamw_", "_fused_adamw_"])).by_op) == 1


def test_of_several_ranks_the_lowest_common_one_is_aligned() -> None:
    a = predicted(LINEAR, RELU, LINEAR, RELU).replace(rank=[0, 0, 1, 1], op_id=[0, 1, 0, 1])
    b = flat(("aten::addmm", *LINEAR[1:]), ("aten::relu", *RELU[1:])).replace(rank=1)
    assert align_traces(a, b).pairs.tolist() == [[2, 0], [3, 1]]


def test_what_the_host_does_for_a_predicted_operator_is_no_second_operator() -> None:
    rows = [
        {"name": LINEAR[0], "kind": kind, "module": "net.fc", "shapes": LINEAR[2], "op_id": 0, "stream": stream,
         "start_s": s, "duration_s": 1.0}
        for s, (kind, stream) in enumerate([("launch", "host"), ("matmul", "compute"), ("matmul", "compute")])
    ]  # fmt: skip
    found = align_traces(Trace.from_rows(rows), flat(("aten::addmm", *LINEAR[1:])))
    assert found.pairs.tolist() == [[1, 0]]
    assert found.predicted_seconds.tolist() == [0.0, 2.0, 0.0]


MODEL = [(f"aten.{n}.default", f"layers.{i}.{n}", f"[{i + 1},{k}]") for i in range(12) for k, n in
         enumerate(["mm", "add", "gelu", "bmm", "softmax"])]  # fmt: skip


@given(st.data())
@settings(deadline=None)
def test_deletions_insertions_and_moves_are_recovered_without_a_wrong_pair(data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(MODEL))), unique=True, max_size=len(MODEL)).map(sorted))
    moved = data.draw(st.permutations(kept)) if data.draw(st.booleans()) else kept
    ops: list[tuple[str, str, str, int]] = [(canonical_name(MODEL[i][0]), *MODEL[i][1:], i) for i in moved]  # type: ignore[assignment]
    for _ in range(data.draw(st.integers(0, 8))):
        name = data.draw(st.sampled_from(["aten::mm", "aten::add", "aten::sort"]))
        ops.insert(data.draw(st.integers(0, len(ops))), (name, "elsewhere", "[77]", -1))
    found = align_traces(predicted(*MODEL), flat(*(op[:3] for op in ops)))
    assert sorted(found.pairs[:, 0].tolist()) == kept
    assert all(ops[j][3] == i for i, j in found.pairs.tolist())


@given(st.integers(1, 40), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_equal_sequences_align_completely_whatever_is_known(layers: int, modules: bool, shapes: bool) -> None:
    ops = [(f"aten.{n}.default", f"l.{i}" * modules, "[2]" * shapes) for i in range(layers) for n in ("mm", "add", "t")]
    found = align_traces(predicted(*ops), flat(*((canonical_name(n), m, s) for n, m, s in ops)))
    assert found.pairs.tolist() == [[i, i] for i in range(len(ops))]
    assert found.matched_share == 1.0


def lcs_length(a: list[int], b: list[int]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        row = _next_row(row, x, b)
    return row[-1]


def _next_row(row: list[int], x: int, b: list[int]) -> list[int]:
    new = [0]
    for j, y in enumerate(b):
        new.append(row[j] + 1 if x == y else max(row[j + 1], new[j]))
    return new


sequences = st.lists(st.integers(0, 5), max_size=30)


@given(sequences, sequences, st.sampled_from([0, 20, 1 << 24]))
@settings(deadline=None)
def test_a_gap_is_solved_exactly(a: list[int], b: list[int], cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcs_module, "TRACEBACK_CELLS", cells)
        pairs = sorted(exact_pairs(a, b))
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert len(pairs) == lcs_length(a, b)


@given(st.lists(st.integers(0, 40), max_size=40), st.lists(st.integers(0, 40), max_size=40))
@settings(deadline=None)
def test_matched_positions_increase_and_agree(a: list[int], b: list[int]) -> None:
    i, j = match_sequences(np.array(a, np.int64), np.array(b, np.int64))
    assert [a[x] for x in i] == [b[y] for y in j]
    assert (np.diff(i) > 0).all()
    assert (np.diff(j) > 0).all()


def test_small_sequences_of_distinct_keys_match_as_much_as_possible() -> None:
    rng = random.Random(1)
    for _ in range(50):
        a, b = rng.sample(range(9), 6), rng.sample(range(9), 6)
        best = max(n for n in range(7) for s in combinations(a, n) if _is_subsequence(s, b))
        assert len(match_sequences(np.array(a), np.array(b))[0]) == best


def _is_subsequence(small: tuple[int, ...], big: list[int]) -> bool:
    rest = iter(big)
    return all(x in rest for x in small)


def test_names_alone_still_align_a_long_sequence_with_edits() -> None:
    rng = np.random.default_rng(0)
    a = np.tile(rng.integers(0, 12, 40), 100)
    b = np.delete(a, rng.integers(0, len(a), 60))
    i, _ = match_sequences(a, b)
    assert len(i) == len(b)


def test_a_profiled_network_aligns_with_its_operators(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import profile, record_function

    from foretrace.traces import load_trace

    layers = [(f"fc{i}", torch.nn.Linear(16, 16)) for i in range(3)]
    with profile(record_shapes=True) as profiler, torch.no_grad():
        x = torch.randn(8, 16)
        for name, layer in layers:
            with record_function(f"module:{name}"):
                x = torch.relu(layer(x))
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    events = load_trace(tmp_path / "t.json")
    ops = []
    for name, _ in layers:
        ops += [("aten.t.default", name, "[16,16]"), ("aten.addmm.default", name, "[16][8,16][16,16]")]
        ops += [("aten.relu.default", name, "[8,16]")]
    found = align_traces(predicted(*ops), events)
    assert found.pairs[:, 0].tolist() == list(range(9))
    assert found.confidence.min() == pytest.approx(1.0)
    lonely = {events.name[i] for i in found.unmatched_measured}
    assert lonely <= {"aten::linear", "aten::randn", "aten::empty", "aten::normal_"}
    operators = find_operators(events, frozenset(["aten::addmm"]))
    assert operators.seconds.sum() > 0


def compiled(kernels: bool) -> Trace:
    """A compiled step on a CPU: its region, products, and fused kernels where the compiler records them."""
    rows = [("Torch-Compiled Region: 0/0", 0.0, 10.0, ""), ("aten::mm", 1.0, 3.0, "[1,8][8,16][1,16]")]
    rows += [("graph_0_cpp_fused_add_mul_1", 5.0, 2.0, "")] if kernels else []
    rows += [("TorchDynamo Cache Lookup", 11.0, 1.0, "")]
    names, start, duration, shapes = zip(*rows, strict=True)
    columns = {"name": list(names), "start_s": list(start), "duration_s": list(duration), "shapes": list(shapes)}
    return Trace.from_columns(columns | {"kind": "cpu_op", "stream": "host 1"}, source="measured").with_parents()


def predicted_product() -> Trace:
    columns = {
        "name": ["aten.bmm.default", "fused(aten.add, aten.mul)"],
        "start_s": [0.0, 3.0],
        "duration_s": [3.0, 2.0],
    }
    columns |= {"shapes": ["[1,1,8][1,8,16]", "[1,16]"], "kind": ["matmul", "elementwise"], "op_id": [0, 1]}
    return Trace.from_columns(columns | {"stream": "compute", "module": ["head", "act"]}, source="predicted")


def test_a_batch_of_one_is_the_product_that_a_compiler_makes_of_it() -> None:
    found = align_traces(predicted_product(), compiled(kernels=True))
    assert found.pairs[found.pairs[:, 0] == 0, 1].tolist() == [1]
    assert found.confidence[0] > 0.5


def test_what_the_compiler_does_around_its_kernels_is_no_operator() -> None:
    listed, hidden = (align_traces(predicted_product(), compiled(kernels=k)).measured_seconds for k in (True, False))
    assert listed.tolist() == [0.0, 3.0, 2.0, 0.0]
    assert hidden.tolist() == [7.0, 3.0, 0.0]
