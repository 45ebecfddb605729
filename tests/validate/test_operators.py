"""Rows of tables become the operators, FLOPs and bytes that a captured graph would have."""

from pathlib import Path
from typing import Any

import measured_tables as tables
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware import load_system
from foretrace.ir import DTYPES, OpKind, Role, Tensor
from foretrace.ir.work import op_work
from foretrace.replay.columns import KIND_CODE
from foretrace.replay.costs import load_costs
from foretrace.replay.measured import Measurements, machine, measure, read_measurements, read_tables, table_class
from foretrace.replay.measured.tables import Table, Text


def read(path: Path) -> Measurements:
    (found,) = read_measurements(path)
    return found


def table_of(columns: dict[str, list[Any]]) -> Table:
    made = {
        name: Text(np.arange(len(values), dtype=np.int32), tuple(map(str, values)))
        if isinstance(values[0], str)
        else np.array(values, np.float64)
        for name, values in columns.items()
    }
    return Table("made.parquet", 0, len(next(iter(columns.values()))), made)


def tensor(dtype: str, *shape: int) -> Tensor:
    return Tensor("t", shape, DTYPES[dtype], Role.ACTIVATION, 0)


def same_work(
    found: Measurements, at: int, kind: OpKind, function: str, sizes: dict[str, Any], ins: Any, out: Any
) -> None:
    work, columns = op_work(kind, function, sizes, ins, [out]), found.operators
    assert columns.kind[at] == KIND_CODE[kind]
    for name in ("matrix_flops", "vector_flops", "special_flops", "bytes_read", "bytes_written"):
        assert getattr(columns, name)[at] == getattr(work, name), name
    for name, size in sizes.items():
        assert columns.attribute(name)[at] == size, name


def test_a_matmul_is_that_of_a_graph(tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.GEMM))
    ins = [tensor("bfloat16", 512, 2048), tensor("bfloat16", 2048, 1024)]
    sizes = {"b": 1, "m": 512, "n": 1024, "k": 2048, "bias": False}
    at = int(np.flatnonzero((found.row == 0) & found.operators.of_kind({OpKind.MATMUL}))[0])
    same_work(found, at, OpKind.MATMUL, "mm", sizes, ins, tensor("bfloat16", 512, 1024))
    assert found.operators.names[at] == "aten.mm.default"


def test_attention_is_that_of_a_graph(tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.ATTENTION))
    ins = [tensor("bfloat16", 2, 32, 1024, 128), *[tensor("bfloat16", 2, 8, 1024, 128)] * 2]
    sizes = {
        "batch": 2, "heads": 32, "kv_heads": 8, "q_len": 1024, "kv_len": 1024, "head_dim": 128, "v_dim": 128,
        "causal": True,
    }  # fmt: skip
    same_work(found, 0, OpKind.ATTENTION, "attention", sizes, ins, tensor("bfloat16", 2, 32, 1024, 128))
    assert [found.kind.at(i) for i in range(3)] == ["attention_prefill", "attention_decode", "attention_encoder"]
    # decode in a window of 1024, keys and values of one byte
    assert found.operators.bytes_read[1] == 16 * 32 * 128 * 2 + 16 * 1024 * 8 * 2 * 128


def test_latent_attention_expands_in_prefill_and_not_in_decode(tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.MLA))
    width, value, heads = (found.operators.attribute(n) for n in ("head_dim", "v_dim", "kv_heads"))
    assert [width.tolist(), value.tolist(), heads.tolist()] == [[192, 576], [128, 512], [128, 1]]
    timed = tables.write(tmp_path / "v.parquet", tables.MLA, source=["aic_vllm_1"] * 2)
    more = read(timed)  # with its projections
    assert more.operators.rows > found.operators.rows
    assert more.rows == found.rows


def test_pointwise_norm_and_softmax_are_those_of_a_graph(tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.ELEMENTWISE))
    x = tensor("float32", 4096, 1024)
    order = {found.operators.names[i]: i for i in range(4)}
    same_work(found, order["aten.add.Tensor"], OpKind.ELEMENTWISE, "add", {}, [x, x], x)
    same_work(found, order["aten._softmax.default"], OpKind.SOFTMAX, "_softmax", {}, [x], x)
    same_work(found, order["aten.gelu.default"], OpKind.ELEMENTWISE, "gelu", {}, [x], x)
    assert found.operators.row_length().tolist() == [1024] * 4


def test_a_convolution_is_that_of_a_graph(tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.CONVOLUTION))
    ins = [tensor("float32", 8, 64, 56, 56), tensor("float32", 128, 64, 3, 3)]
    sizes = {"batch": 8, "out_channels": 128, "in_channels": 64, "groups": 1, "k": 64 * 9, "bias": False}
    same_work(found, 0, OpKind.CONVOLUTION, "convolution", sizes, ins, tensor("float32", 8, 128, 28, 28))


@given(
    st.integers(1, 4096),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from(["balanced", "power_law_1.01"]),
)
def test_experts_do_all_of_the_layers_work(tokens: int, topk: int, tp: int, distribution: str) -> None:
    table = table_of(
        {
            "gpu": ["x"],
            "dtype": ["bf16"],
            "tokens": [tokens],
            "hidden": [64],
            "inter": [128],
            "topk": [topk],
            "experts": [16],
            "moe_tp": [tp],
            "moe_ep": [1],
            "distribution": [distribution],
            "latency_us": [1.0],
        }
    )
    sort = table_class(table)
    assert sort is not None
    found = measure(table, sort)
    whole = 2 * tokens * topk * 64 * (128 / tp) * 3
    assert found.operators.matrix_flops.sum() <= whole * 1.0001
    if distribution == "balanced":
        assert found.operators.matrix_flops.sum() == pytest.approx(whole)
    active, longest, rows = (np.nanmax(found.operators.attribute(n)) for n in ("active", "longest", "m"))
    assert 1 <= active <= 16
    assert rows / active <= longest * 1.0001
    assert longest <= max(rows, 1)


def test_a_rank_of_expert_parallelism_does_its_share(tmp_path: Path) -> None:
    alone, shared = (
        read(tables.write(tmp_path / f"{ep}.parquet", tables.MOE, distribution=["balanced"] * 3, moe_ep=[ep] * 3))
        for ep in (1, 4)
    )
    assert shared.operators.matrix_flops.sum() == pytest.approx(alone.operators.matrix_flops.sum() / 4)


def test_low_precision_rows_hold_the_kernels_that_quantise(tmp_path: Path) -> None:
    def names(dtype: str, source: str) -> list[str]:
        path = tables.write(tmp_path / "t.parquet", tables.GEMM, dtype=[dtype] * 3, source=[source] * 3)
        found = read(path)
        return [name for name, row in zip(found.operators.names, found.row, strict=True) if row == 0]

    scale, convert = "foretrace.compute_scale.default", "foretrace.quantize.default"
    assert names("fp8", "aic_trtllm_1")[:-1] == [scale, convert]
    assert names("fp8", "aic_vllm_1")[:-1] == ["foretrace.dynamic_quantize_rows.default"]
    assert names("fp8_block", "mine")[:-1] == ["foretrace.dynamic_quantize_blocks.default"]
    assert len(names("fp8", "pipeweave_x")) == 1
    assert names("bf16", "aic_vllm_1") == ["aten.mm.default"]


def test_software_follows_from_how_a_table_was_made(tmp_path: Path) -> None:
    def software(**columns: list[str]) -> str:
        found = read(tables.write(tmp_path / "t.parquet", tables.GEMM, **columns))
        return found.software.at(0)

    assert software() == "serving"
    assert software(source=["neusight_test"] * 3) == software(timing=["eager_mean"] * 3) == "eager"
    assert software(source=["vidur_x"] * 3, timing=["cuda_profiler"] * 3) == "serving"
    assert software(software=["compiled"] * 3, timing=["eager"] * 3) == "compiled"


def test_interconnects_change_the_links_of_the_machine() -> None:
    a40 = load_system("a40")
    bridged = machine(a40, "a40_pairwise_nvlink:pair").network.scale_up
    assert bridged is not None
    assert bridged.bandwidth == pytest.approx(56.25e9)
    assert machine(a40, "a40_pairwise_nvlink").network.scale_up is None
    h100 = load_system("h100-sxm")
    assert machine(h100, "nvlink4") == h100
    assert machine(h100, "pcie5").network.scale_up is None
    assert machine(h100, "a fabric nobody knows") == h100


@pytest.mark.parametrize("name", tables.ALL)
def test_every_sort_of_table_is_priced_row_by_row(name: str, tmp_path: Path) -> None:
    found = read(tables.write(tmp_path / "t.parquet", tables.ALL[name]))
    assert found.rows == len(tables.ALL[name]["gpu"])
    assert not found.refused
    for gpu, variant, software, rows in found.split():
        part = found.take(rows)
        priced = load_costs("roofline").price(part.operators, machine(load_system(gpu), variant), software)
        assert (part.sum(priced.seconds) > 0).all()
        # rows are independent: each alone costs what it costs among the others
        for i in range(part.rows):
            only = part.take(np.arange(part.rows) == i)
            again = load_costs("roofline").price(only.operators, load_system(gpu), software)
            assert only.sum(again.seconds)[0] == part.sum(priced.seconds)[i]


def test_pieces_of_a_table_are_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tables.write(tmp_path / "t.csv", {k: v * 5 for k, v in tables.GEMM.items()})
    monkeypatch.setattr("foretrace.replay.measured.tables.ROWS_AT_ONCE", 4)
    pieces = list(read_tables(path))
    assert [p.rows for p in pieces] == [4, 4, 4, 3]
    assert [p.first for p in pieces] == [0, 4, 8, 12]
    assert np.concatenate([m.number for m in read_measurements(path)]).tolist() == list(range(15))
