"""What to fix first: planted slowdowns come out on top, nothing cancels, nothing is counted twice."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foretrace.ir import load_graph
from foretrace.replay import replay_graph
from foretrace.traces import Trace, diff_traces
from foretrace.traces.compare.causes import Part, find_causes
from foretrace.traces.compare.naming import common_path, fold_indices


@pytest.fixture(scope="session")
def gpt2(gpt2_graph_file: Path) -> Trace:
    return replay_graph(load_graph(gpt2_graph_file), "a100-sxm-40gb", batch=2, seq=128).trace


def inside(trace: Trace, module: str) -> np.ndarray:
    """Rows in *module*, whose indices may be folded."""
    folded = "*" in module
    return trace.module.where(
        lambda path: (
            (fold_indices(path) if folded else path) == module
            or (fold_indices(path) if folded else path).startswith(f"{module}.")
        )
    )


MODULES = ["transformer.h.*.mlp", "transformer.h.*.attn", "transformer.h.*.attn.c_attn", "transformer.h.*.mlp.c_proj",
           "transformer.h.3", "transformer.h.7", "transformer.h.5.mlp", "transformer.h.11.attn", "transformer.h.*.ln_1",
           "transformer.h.2.mlp.c_fc", "lm_head"]  # fmt: skip


@given(
    st.sampled_from(MODULES), st.sampled_from(MODULES), st.sampled_from([0.0, 0.01]), st.integers(0, 9),
    st.sampled_from([1.0, 0.95]),
)  # fmt: skip
@settings(max_examples=25)
def test_a_planted_slowdown_and_a_planted_speedup_are_the_two_top_causes(
    gpt2: Trace, slow: str, fast: str, noise: float, seed: int, bias: float
) -> None:
    slower, faster = inside(gpt2, slow), inside(gpt2, fast)
    assume(not (slower & faster).any())
    kernels = gpt2.duration_s * ~gpt2.kind.isin(["launch"])
    quiet = noise == 0 and bias == 1
    assume(quiet or min(kernels[slower].sum(), kernels[faster].sum()) > 0.05 * kernels.sum())
    factor = np.where(slower, 1.5, np.where(faster, 0.5, 1.0)) * bias
    factor *= 1 + noise * np.random.default_rng(seed).standard_normal(len(gpt2))
    measured = gpt2.replace(duration_s=gpt2.duration_s * factor, source="measured")
    causes = diff_traces(gpt2, measured).causes
    expected = {("slower", slow), ("faster", fast)}
    top = [(c.what, c.module) for c in causes[: 2 if quiet or bias == 1 else 3]]
    assert expected <= set(top)
    for cause in causes[:3]:
        if (cause.what, cause.module) == ("slower", slow) and noise == 0:
            assert cause.measured_s == pytest.approx(1.5 * bias * cause.predicted_s)
            assert cause.predicted_s == pytest.approx(kernels[slower].sum())


parts = st.lists(
    st.builds(
        Part,
        name=st.sampled_from(["aten::mm", "aten::add"]),
        module=st.sampled_from(["", "h.0.mlp", "h.1.mlp", "h.1.attn", "head"]),
        kind=st.sampled_from(["matmul", "elementwise"]),
        shapes=st.sampled_from(["", "[2,2]"]),
        predicted_s=st.floats(0, 10),
        measured_s=st.floats(0, 10),
    ),
    max_size=30,
)


@given(parts)
def test_every_difference_is_in_one_cause(given_parts: list[Part]) -> None:
    causes = find_causes(given_parts)
    total = sum(p.measured_s - p.predicted_s for p in given_parts)
    assert sum(c.difference_s for c in causes) == pytest.approx(total, abs=1e-9)
    assert sum(c.ops for c in causes) <= len(given_parts)
    sizes = [abs(c.difference_s) for c in causes]
    assert sizes == sorted(sizes, reverse=True)
    assert all((c.what == "slower") == (c.difference_s > 0) for c in causes)


def test_one_slower_and_one_faster_of_the_same_name_do_not_cancel() -> None:
    twins = [Part("aten::mm", f"h.{i}.mlp", "matmul", "", 1.0, m) for i, m in enumerate([1.5, 0.5, 1.0, 1.0])]
    assert [(c.what, c.module, c.difference_s) for c in find_causes(twins)] == [
        ("slower", "h.0.mlp", 0.5),
        ("faster", "h.1.mlp", -0.5),
    ]


def test_without_modules_they_do_not_cancel_either() -> None:
    twins = [Part("aten::mm", "", "matmul", "", 1.0, m) for m in (1.5, 0.5, 1.0, 1.0)]
    assert {(c.what, c.difference_s) for c in find_causes(twins)} == {("faster", -0.5), ("slower", 0.5)}


def test_repeated_layers_are_one_cause_and_say_so() -> None:
    layers = [Part("aten::mm", f"h.{i}.mlp.fc", "matmul", "[2,2]", 1.0, 1.25 + 0.01 * i) for i in range(4)]
    (cause,) = find_causes(layers)
    assert (cause.what, cause.name, cause.module, cause.kind, cause.shapes, cause.ops) == (
        "slower", "aten::mm", "h.*.mlp.fc", "matmul", "[2,2]", 4,
    )  # fmt: skip


def test_what_only_one_trace_has_is_missing_or_extra() -> None:
    lonely = [Part("aten::sort", f"h.{i}", "sort", "", 2.0, 0.0, "missing") for i in range(2)]
    lonely.append(Part("aten::cat", "h.0", "copy", "", 0.0, 1.0, "extra"))
    assert [(c.what, c.module, c.difference_s, c.ops) for c in find_causes(lonely)] == [
        ("missing", "h.*", -4.0, 2),
        ("extra", "h.0", 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("modules", "common"),
    [
        (["h.3.mlp"], "h.3.mlp"),
        (["h.3.mlp", "h.7.mlp.act"], "h.*.mlp"),
        (["h.3.mlp", "h.3.attn"], "h.3"),
        (["h.3.mlp", "head"], ""),
        (["", "h"], ""),
    ],
)
def test_the_module_that_holds_them_all(modules: list[str], common: str) -> None:
    assert common_path(modules) == common
