"""Every operator of real models has a modelled cost: only `OpKind.OTHER` is priced by its bytes alone, and named."""

from typing import Final

import numpy as np
import pytest

from foretrace.capture import capture_graph
from foretrace.capture.aten import KIND_OF
from foretrace.ir import FREE_KINDS, Graph, OpKind, Role
from foretrace.replay import replay_graph
from foretrace.replay.columns import KINDS
from foretrace.replay.costs.physics.model import _CLASSES
from foretrace.replay.measured.columns import Block
from tests.replay.models import Builder
from tests.replay.physics_rows import collective, price, stream, together

FORWARD, DECODE, PREFILL, TRAIN = "forward", "decode", "prefill", "train"
QUICK: Final = (
    ("Llama-3.2-1B", DECODE),
    ("Qwen3-30B-A3B", FORWARD),
    ("mamba-130m-hf", FORWARD),
    ("vit-base-patch16-224", FORWARD),
    ("bert-base-uncased", FORWARD),
    ("bert-base-uncased", TRAIN),
    ("t5-small", FORWARD),
    ("whisper-tiny", FORWARD),
)
SLOW: Final = (
    ("Llama-3.2-1B", PREFILL),
    ("Llama-3.2-1B", TRAIN),
    ("Mixtral-8x7B-v0.1", PREFILL),
    ("Qwen3-30B-A3B", DECODE),
    ("DeepSeek-V2-Lite", PREFILL),
    ("DeepSeek-V2-Lite", DECODE),
    ("mamba-130m-hf", DECODE),
    ("mamba-130m-hf", TRAIN),
    ("rwkv-4-169m-pile", DECODE),
    ("gemma-3-1b-pt", PREFILL),
    ("gemma-3-1b-pt", DECODE),
    ("gpt-oss-20b", DECODE),
    ("swin-tiny-patch4-window7-224", FORWARD),
    ("resnet-50", TRAIN),
    ("wav2vec2-base-960h", FORWARD),
    ("clip-vit-base-patch32", FORWARD),
    ("t5-small", DECODE),
    ("t5-small", TRAIN),
    ("whisper-tiny", DECODE),
)
CASES: Final = (*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW))

KNOWN: Final[dict[str, str]] = {}
"""Operators that stay unmodelled, and why they do not matter."""


def check(model: str, phase: str) -> None:
    result = replay_graph(capture_graph(model, phase=phase), "h100-sxm")
    assert set(result.unmodelled_ops) <= KNOWN.keys()
    assert any("bytes alone" in warning for warning in result.warnings) == bool(result.unmodelled_ops)
    costs, table = result.priced, result.table
    free = table.of_kind(FREE_KINDS)
    launch = 1.3e-6 * np.minimum(table.attribute("repeat", 1.0), 1.0)  # no launch of what only a larger batch runs
    assert (costs.seconds >= launch)[~free].all()
    assert (costs.seconds[free] == 0).all()
    assert np.isfinite(costs.high_s).all()
    unknown = table.of_kind({OpKind.OTHER})
    times = np.bincount(table.row, minlength=table.rows)
    share = (costs.seconds * times)[unknown].sum() / (costs.seconds * times).sum()
    assert share < 0.02, "what is unmodelled is more than a trifle"


@pytest.mark.parametrize(("model", "phase"), CASES)
def test_every_operator_is_modelled(model: str, phase: str) -> None:
    check(model, phase)


def test_every_kind_has_one_class_of_kernels() -> None:
    for kind in OpKind:
        priced_by = [price for kinds, price in _CLASSES if kind in kinds]
        assert len(priced_by) == (0 if kind in FREE_KINDS else 1), kind


def test_no_name_in_the_table_of_aten_is_unmodelled() -> None:
    assert OpKind.OTHER not in KIND_OF.values()


def row_of(kind: OpKind) -> Block:
    return collective("all_reduce", 1 << 20, 2) if kind is OpKind.COLLECTIVE else stream(kind, "my.op", 64, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_only_other_is_unmodelled(kind: OpKind) -> None:
    costs = price(together(row_of(kind)), "h100-sxm")
    assert costs.unmodelled == (("my.op",) if kind is OpKind.OTHER else ())
    assert (costs.seconds[0] > 0) == (kind not in FREE_KINDS)


def one_op(kind: OpKind) -> Graph:
    b = Builder("bfloat16")
    x = b.tensor("x", 4096, 4096, role=Role.INPUT)
    b.op(kind, "my.odd_op", [x], [b.tensor("y", 4096, 4096, role=Role.OUTPUT)])
    return b.graph()


def test_a_collective_among_nobody_knows_whom_is_never_free() -> None:
    alone = replay_graph(one_op(OpKind.COLLECTIVE), "h100-sxm")
    assert alone.unmodelled_ops == ("my.odd_op",)
    assert alone.priced.seconds[0] > 0


def test_what_is_unmodelled_is_priced_as_a_copy_and_named() -> None:
    other, copy = (replay_graph(one_op(kind), "h100-sxm") for kind in (OpKind.OTHER, OpKind.COPY))
    assert other.unmodelled_ops == ("my.odd_op",)
    assert copy.unmodelled_ops == ()
    assert "priced by their bytes alone: my.odd_op" in other.warnings
    assert other.priced.seconds[0] == pytest.approx(copy.priced.seconds[0], rel=0.2)
