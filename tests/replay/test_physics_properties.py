"""Physics through `Physics.price`, on shipped chips and profiles: bounds, monotone in work and resources, no cliffs.

Tolerances are those of real kernels' steps: a product takes another tile, a context one more split, a chip one more
wave. Attention is compared inside one class of kernels: a library's prefill, split-KV and one-head kernels differ.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import DTYPES, OpKind
from foretrace.replay.costs.roofline import causal_share, matrix_rate
from foretrace.replay.measured.columns import Block, MeasuredColumns
from tests.replay.physics_rows import (
    CHIPS,
    LINKED,
    RESOURCES,
    SOFTWARE,
    attention,
    collective,
    convolution,
    experts,
    gemm,
    on,
    price,
    scaled,
    seconds,
    stream,
    together,
)

TILES_SLACK: Final = 1.3
"""How much faster a larger product may be that falls to better tiles, or to more splits of a long K."""
SLACK: Final = 1.1
"""The same of everything else: a boundary of blocks or splits."""
WINOGRAD_SAVES: Final = 2.25
WORK: Final = ("matrix_flops", "vector_flops", "special_flops", "bytes_read", "bytes_written")

chips = st.sampled_from(CHIPS)
libraries = st.sampled_from(SOFTWARE)


def natural(most: int, least: int = 1) -> st.SearchStrategy[int]:
    """Whole numbers as sizes are: spread over the orders of magnitude, often round."""
    powers = st.integers(0, most.bit_length() - 1).map(lambda e: 1 << e)
    near = st.tuples(powers, st.integers(-1, 1)).map(sum)
    return st.one_of(powers, near, st.integers(least, most)).map(lambda v: min(max(v, least), most))


Sizes = dict[str, Any]
Case = tuple[Callable[..., Block], Sizes, tuple[str, ...]]
"""What makes a row, its sizes, and the names of those in which it is monotone."""


HALF: Final = ("bfloat16", "float16")
ALIGNED: Final = 8
"""Elements of 16 bits in 16 bytes."""


@st.composite
def gemms(draw: st.DrawFn) -> Case:
    sizes = {"m": draw(natural(1 << 15)), "n": draw(natural(1 << 15)), "k": draw(natural(1 << 15))}
    sizes |= {"b": draw(st.one_of(st.just(1), natural(128)))}
    dtype = draw(st.sampled_from(("bfloat16", "float16", "float32", "float64", "tf32", "float8_e4m3", "int8")))
    return gemm, sizes | {"dtype": dtype}, ("m", "n", "k", "b")


HEADS: Final = ((32, 8, 128, 128), (128, 128, 192, 128), (16, 16, 64, 64), (64, 1, 128, 128), (8, 4, 256, 256))
LATENT: Final = (128, 1, 576, 512)


def _heads(draw: st.DrawFn) -> Sizes:
    heads = draw(st.sampled_from((*HEADS, LATENT)))
    kv_dtype = draw(st.sampled_from(("", "float8_e4m3")))
    dtype = draw(st.sampled_from(("bfloat16", "bfloat16", "float32")))
    names = dict(zip(("heads", "kv_heads", "head_dim", "v_dim"), heads, strict=True))
    return names | {"kv_dtype": kv_dtype, "dtype": dtype}


@st.composite
def prefills(draw: st.DrawFn) -> Case:
    q_len = draw(natural(1 << 14, 17))
    sizes = {"batch": draw(natural(64)), "q_len": q_len, "kv_len": q_len + draw(st.sampled_from((0, 1 << 15)))}
    causal = draw(st.booleans())
    window = draw(st.sampled_from((0, 0, 1024))) if causal else 0
    return attention, sizes | _heads(draw) | {"causal": causal, "window": window}, ("batch", "kv_len")


@st.composite
def decodes(draw: st.DrawFn) -> Case:
    sizes = {"batch": draw(natural(512)), "q_len": draw(st.integers(1, 8)), "kv_len": draw(natural(1 << 17, 17))}
    return attention, sizes | _heads(draw), ("batch", "kv_len")


STREAMS: Final = (
    (OpKind.ELEMENTWISE, "aten.add.Tensor", 2.0, 0.0),
    (OpKind.ELEMENTWISE, "aten.gelu.default", 1.0, 1.0),
    (OpKind.ELEMENTWISE, "foretrace.silu_and_mul", 2.0, 1.0),
    (OpKind.ELEMENTWISE, "foretrace.quantize.default", 1.0, 0.0),
    (OpKind.ELEMENTWISE, "foretrace.dynamic_quantize", 1.0, 0.0),
    (OpKind.NORM, "aten.native_layer_norm.default", 1.0, 0.0),
    (OpKind.NORM, "aten._fused_rms_norm.default", 1.0, 0.0),
    (OpKind.SOFTMAX, "aten._softmax.default", 1.0, 1.0),
    (OpKind.REDUCTION, "aten.sum.dim_IntList", 1.0, 0.0),
    (OpKind.REDUCTION, "foretrace.compute_scale", 1.0, 0.0),
    (OpKind.EMBEDDING, "aten.embedding.default", 1.0, 0.0),
    (OpKind.GATHER_SCATTER, "aten.index.Tensor", 1.0, 0.0),
    (OpKind.SORT, "aten.sort.default", 1.0, 0.0),
    (OpKind.SCAN, "aten.cumsum.default", 1.0, 0.0),
    (OpKind.COPY, "aten.clone.default", 1.0, 0.0),
    (OpKind.OTHER, "my.odd_op", 1.0, 0.0),
)


@st.composite
def streams(draw: st.DrawFn) -> Case:
    kind, name, reads, special = draw(st.sampled_from(STREAMS))
    sizes = {"rows": draw(natural(1 << 17)), "cols": draw(natural(1 << 15))}
    dtype = draw(st.sampled_from(("bfloat16", "float32")))
    return (
        stream,
        {"kind": kind, "name": name, "reads": reads, "special": special, "dtype": dtype, **sizes},
        (
            "rows",
            "cols",
        ),
    )


@st.composite
def grouped(draw: st.DrawFn) -> Case:
    sizes: Sizes = {"m": draw(natural(1 << 17)), "n": draw(natural(1 << 13)), "k": draw(natural(1 << 13))}
    family = draw(st.sampled_from(("aten", "triton", "cutlass", "marlin", "flashinfer")))
    dtype = draw(st.sampled_from(("bfloat16", "float8_e4m3")))
    sizes |= {"groups": draw(natural(256)), "name": f"{family}._grouped_mm", "dtype": dtype}
    return experts, sizes, ("m", "n", "k")


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    winograd = draw(st.sampled_from((0.0, 1.0)))
    sizes = {"batch": draw(natural(64)), "c_in": draw(natural(1024)), "c_out": draw(natural(1024))}
    sizes |= {"kernel": 3 if winograd else draw(st.sampled_from((1, 3, 7))), "out": draw(natural(224))}
    dtype = draw(st.sampled_from(("float16", "float32")))
    return convolution, sizes | {"winograd": winograd, "dtype": dtype}, ("batch", "c_in", "c_out", "out")


cases = st.one_of(gemms(), prefills(), decodes(), streams(), grouped(), convolutions())


def aligned(case: Case) -> Case:
    """*case* with 16-bit rows in multiples of 16 bytes: others take slower kernels, a cliff of its own."""
    make, sizes, names = case
    if make is not gemm or sizes["dtype"] not in HALF:
        return case
    return make, sizes | {name: -(-sizes[name] // ALIGNED) * ALIGNED for name in "nk"}, names


def larger(case: Case, name: str, factor: float) -> Block:
    make, sizes, _ = case
    _, more, _ = aligned((make, sizes | {name: int(np.ceil(sizes[name] * factor))}, ()))
    return make(**more)


def slack(case: Case) -> float:
    return TILES_SLACK if case[0] in (gemm, convolution) else SLACK


def physical(columns: MeasuredColumns, chip: str) -> float:
    """s of the first row that no kernel on *chip* goes below."""
    accelerator = on(chip).accelerator
    rate = matrix_rate(accelerator, columns.dtypes[0])[0]
    flops = float((columns.matrix_flops * causal_share(columns))[0])
    k, width = columns.attribute("k")[0], columns.attribute("in_channels")[0]
    if columns.attribute("winograd", 0.0)[0] > 0 or k == 9 * width:  # 3 x 3, whatever the table calls it
        flops /= WINOGRAD_SAVES
    cold = float(columns.bytes[0])
    if columns.attribute("window", 0.0)[0] > 0:
        cold = 0.0  # of what a window hides, a kernel reads what it likes
    if not np.isin(columns.kind, together(gemm(1, 1, 1), attention(1, 1, 1), experts(1, 1, 1, 1)).kind)[0]:
        cold -= accelerator.cache.capacity_bytes if accelerator.cache else 0.0  # the op before left it there
    return max(flops / rate, cold / accelerator.memory.bandwidth, accelerator.launch_floor_s)


@given(cases, chips, libraries)
def test_nothing_beats_the_chip(case: Case, chip: str, software: str) -> None:
    columns = together(case[0](**case[1]))
    costs = price(columns, chip, software)
    assert costs.seconds[0] >= physical(columns, chip) * (1 - 1e-9)
    assert costs.low_s[0] <= costs.seconds[0] <= costs.high_s[0]


@given(cases, chips, libraries, st.sampled_from((1.01, 1.1, 1.5, 2.0, 4.0)))
def test_more_work_is_never_faster(case: Case, chip: str, software: str, factor: float) -> None:
    case = aligned(case)
    base = seconds(case[0](**case[1]), chip, software)[0]
    for name in case[2]:
        assert base <= seconds(larger(case, name, factor), chip, software)[0] * slack(case), name


@given(cases, chips, libraries)
def test_one_percent_more_is_never_twice_as_slow(case: Case, chip: str, software: str) -> None:
    """Up to 2, which is where one wave becomes two; a row that outgrows the registers takes another kernel."""
    case = aligned(case)
    base = seconds(case[0](**case[1]), chip, software)[0]
    for name in case[2]:
        if case[1][name] >= 100:  # one more is one percent
            outgrows = case[0] is stream and name == "cols" and case[1]["cols"] <= 1024 < 1.01 * case[1]["cols"] + 1
            most = 2.25 if outgrows else 2.05
            assert seconds(larger(case, name, 1.01), chip, software)[0] <= most * base, name


@given(cases, chips, libraries, st.sampled_from(RESOURCES), st.sampled_from((1.1, 1.5, 2.0, 8.0)))
def test_a_better_chip_is_never_slower(case: Case, chip: str, software: str, resource: str, factor: float) -> None:
    row = case[0](**case[1])
    better = scaled(on(chip), resource, factor)
    assert seconds(row, better, software)[0] <= seconds(row, chip, software)[0] * SLACK


@given(st.sampled_from(LINKED), libraries, natural(1 << 34, 16), st.sampled_from((2, 4, 8)), st.data())
def test_collectives_through_the_model(chip: str, software: str, size: int, ranks: int, data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")))
    system = on(chip).model_copy(update={"count": ranks})
    base = seconds(collective(op, size, ranks), system, software)[0]
    passes = {"all_reduce": 1.0, "broadcast": 1.0}.get(op, (ranks - 1) / ranks)
    nearest = max(link.bandwidth for link in system.network.tiers().values())
    assert base >= size * passes / nearest
    assert base >= system.accelerator.launch_floor_s
    assert base <= seconds(collective(op, size * 1.01 + 1, ranks), system, software)[0] * SLACK
    assert seconds(collective(op, size * 1.01, ranks), system, software)[0] <= 2 * base
    for resource in RESOURCES:
        assert seconds(collective(op, size, ranks), scaled(system, resource, 2.0), software)[0] <= base * SLACK


@given(st.lists(cases, min_size=1, max_size=12), chips, libraries, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(drawn: list[Case], chip: str, software: str, random: Any) -> None:
    rows = [make(**sizes) for make, sizes, _ in drawn]
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = price(together(*rows), chip, software), price(together(*(rows[i] for i in order)), chip, software)
    for name in ("seconds", "low_s", "high_s", "bound"):
        np.testing.assert_array_equal(getattr(one, name)[order], getattr(other, name), err_msg=name)
    assert one.unmodelled == other.unmodelled


@given(st.lists(cases, min_size=1, max_size=8), chips, libraries)
def test_a_row_costs_what_it_costs_alone_and_twice_the_same(drawn: list[Case], chip: str, software: str) -> None:
    rows = [make(**sizes) for make, sizes, _ in drawn]
    twice = seconds(together(*rows, *rows), chip, software)
    alone = [seconds(row, chip, software)[0] for row in rows]
    np.testing.assert_array_equal(twice[: len(rows)], twice[len(rows) :])
    np.testing.assert_array_equal(twice[: len(rows)], alone)


@given(cases, chips, libraries, st.integers(1, 10**6))
def test_a_loop_costs_its_trips(case: Case, chip: str, software: str, trips: int) -> None:
    row = case[0](**case[1])
    once = price(row, chip, software)
    work = {name: getattr(row, name) * trips for name in WORK}
    looped = together(Block(**{**vars(row), **work, "attributes": {**row.attributes, "repeat": float(trips)}}))
    many = price(looped, chip, software)
    for name in ("seconds", "low_s", "high_s"):
        np.testing.assert_allclose(getattr(many, name), getattr(once, name) * trips, rtol=1e-9)


ABSURD: Final = 2.0**40
"""More than any tensor holds: `tabulate` refuses graphs of such sizes, tables refuse longer ones yet."""


@pytest.mark.parametrize("chip", CHIPS)
def test_absurd_sizes_have_finite_prices(chip: str) -> None:
    rows = together(
        *(gemm(*sizes) for sizes in ((ABSURD, 1, 1), (1, ABSURD, 1), (1, 1, ABSURD), (ABSURD, ABSURD, ABSURD))),
        gemm(1, 1, 1, b=ABSURD),
        attention(ABSURD, ABSURD, ABSURD),
        attention(1, 1, ABSURD),
        attention(1, ABSURD, ABSURD, 1, 1, 1, causal=False),
        attention(1, 4096, 4096, 32, 1, 576, 512, backward=True),
        attention(ABSURD, 1, 1, 128, 1, 576, 512),
        *(stream(kind, name, ABSURD, ABSURD, special=s) for kind, name, _, s in STREAMS),
        *(stream(kind, name, 0, 0) for kind, name, _, _ in STREAMS),
        experts(ABSURD, ABSURD, ABSURD, ABSURD),
        experts(1, 1, 1, ABSURD),
        convolution(ABSURD, ABSURD, ABSURD, 1, ABSURD),
        convolution(1, 1, 1, 1, 1, winograd=1.0),
        collective("all_reduce", ABSURD**2, 2),
        collective("all_to_all", 0, 2),
    )
    if not on(chip).network.tiers().keys() & {"scale-up", "pcie"}:
        rows = rows.take(np.arange(rows.rows - 2))  # nothing joins two of them
    for software in SOFTWARE:
        with np.errstate(all="raise", under="ignore"):
            costs = price(rows, chip, software)
        assert np.isfinite(costs.high_s).all()
        assert (costs.low_s > 0).all()
        assert (costs.low_s <= costs.seconds).all()
        assert (costs.seconds <= costs.high_s).all()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("chip", ["h100-sxm", "t4", "tpu-v6e", "mi300x", "x86-cpu"])
def test_every_format_has_a_price_on_every_chip(chip: str, dtype: str) -> None:
    costs = price(together(gemm(512, 512, 512, dtype=dtype), stream(*STREAMS[0][:2], 512, 512, dtype)), chip)
    assert (costs.seconds > 0).all()
    used = matrix_rate(on(chip).accelerator, DTYPES[dtype])[1]
    assert (used != DTYPES[dtype]) == any(f"has no {DTYPES[dtype]} units" in w for w in costs.warnings)


@given(prefills(), chips, libraries)
def test_the_backward_of_attention_is_slower_than_its_forward(case: Case, chip: str, software: str) -> None:
    make, sizes, _ = case
    forward, backward = (seconds(make(**sizes, backward=b), chip, software)[0] for b in (False, True))
    assert forward < backward
    assert backward >= physical(together(make(**sizes, backward=True)), chip) * (1 - 1e-9)


@given(natural(1 << 14, 17), natural(1 << 13), chips, libraries)
def test_what_a_mask_or_a_window_hides_is_not_worked_on(q_len: int, window: int, chip: str, software: str) -> None:
    whole = seconds(attention(4, q_len, q_len), chip, software)[0]
    assert seconds(attention(4, q_len, q_len, window=window), chip, software)[0] <= whole * SLACK
