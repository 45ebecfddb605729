"""The plan: written, read, checked, and what it proposes where it cannot be."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import UnknownNameError
from foretrace.transforms.plan import AXES, Plan, PlanError, nearest_divisor

degrees = st.sampled_from([1, 2, 4, 8])
plans = st.builds(
    lambda tp, sp, pp, dp, cp, zero, microbatch: Plan(
        tp=tp, sp=sp and tp > 1, pp=pp, dp=dp, cp=cp, zero=zero, microbatch=microbatch
    ),
    degrees, st.booleans(), degrees, degrees, degrees, st.integers(0, 3), degrees,
)  # fmt: skip


@given(plans)
def test_text_and_back(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan
    assert Plan.of(str(plan)) == Plan.of(plan) == plan


@given(plans, st.data())
def test_a_rank_has_one_place_and_neighbours_a_stride_apart(plan: Plan, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, plan.ranks - 1))
    place = plan.place(rank)
    assert sum(place[axis] * plan.stride(axis) for axis in AXES) == rank
    for axis in AXES:
        if place[axis] + 1 < getattr(plan, axis):
            assert plan.place(rank + plan.stride(axis)) == {**place, axis: place[axis] + 1}


@given(plans, st.integers(1, 300))
def test_a_proposed_plan_fits(plan: Plan, count: int) -> None:
    try:
        plan.check(count)
    except PlanError as error:
        advice = str(error).rsplit(": ", 1)[1]
        text = advice.removeprefix("nearest is ").removesuffix(" fills it")
        nearest = "nearest" in advice
        changed = Plan.parse(text) if nearest else Plan.parse(text, tp=plan.tp, cp=plan.cp, pp=plan.pp)
        assert changed.ranks == count
    else:
        assert plan.ranks == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp", "expected key=value"),
        ("tp=", "expected key=value"),
        ("tp=x", "tp=x: expected a whole number"),
        ("tp=0", "expected 1 or more"),
        ("sp=2", "sp=2: expected 0 or 1"),
        ("sp=1", "sp=1 without tp"),
        ("zero=4", "expected 0, 1, 2 or 3"),
        ("tp=2,tp=4", "tp is given twice"),
        ("interleave=2", "interleave=2 without pp"),
        ("schedule=1f1b", "without pp"),
        ("dp=4,ep=3", "ep=3 does not divide dp · cp = 4: nearest is ep=2"),
        ("dp=4,zero=3,shard=3", "shard=3 does not divide"),
        ("pp=2,zero=3,schedule=zb-h1", "use zero=1"),
        ("recompute=ful", "did you mean full"),
        ("ring=1", "ring=1 without cp"),
        ("skew=0.5", "expected 1"),
        ("skew=2", "skew=2 without ep"),
        ("dp=4,ep=4,skew=5", "skew=5: expected 1 (balanced) to ep=4"),
        ("dp=4,ep=4,skew=inf", "skew=inf: expected a number"),
        ("dp=4,ep=4,skew=nan", "skew=nan: expected a number"),
        ("dp=4,shard=2", "shard=2 without zero"),
    ],
)
def test_contradictions_name_the_factor(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan.parse(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tp": 2.5}, "tp=2.5: expected a whole number"),
        ({"tp": True}, "tp=True: expected a whole number"),
        ({"tp": "8"}, "tp=8: expected a whole number"),
        ({"tp": 2, "sp": 2}, "sp=2: expected 0 or 1"),
        ({"recompute": "ful"}, "did you mean full"),
        ({"recompute": 1}, "recompute=1: expected text"),
        ({"dp": 4, "ep": 4, "skew": float("nan")}, "skew=nan: expected a number"),
    ],
)
def test_a_plan_made_in_python_is_checked_as_one_that_is_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan(**values)


def test_plans_from_mappings() -> None:
    assert Plan.of({"tp": "8", "sp": "1", "recompute": "full"}) == Plan(tp=8, sp=True, recompute="full")
    assert Plan.of({"tp": np.int64(8), "sp": 1}) == Plan(tp=8, sp=True)
    assert str(Plan(microbatch=1000003, tp=2, sp=True)) == "tp=2,sp=1,microbatch=1000003"
    assert str(Plan(dp=4, ep=4, skew=1.123456789)) == "dp=4,ep=4,skew=1.123456789"
    with pytest.raises(UnknownNameError, match="nearest: tp"):
        Plan.of({"tpp": 8})
    with pytest.raises(PlanError, match="got 3"):
        Plan.of(3)  # type: ignore[arg-type]


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="nearest: microbatch"):
        Plan.parse("micro_batch=2")


def test_batches_that_do_not_divide() -> None:
    plan = Plan(dp=4, microbatch=2)
    assert plan.micro_batches(64) == 8
    with pytest.raises(PlanError, match=r"nearest is --batch 64$"):
        plan.micro_batches(63)
    with pytest.raises(PlanError, match=r"nearest is --batch 64, or microbatch=1"):
        plan.micro_batches(60)


def test_advice_leads_to_a_plan() -> None:
    """What a proposed degree leaves no room for is proposed with it."""
    for plan, count in ((Plan(tp=2, sp=True), 3), (Plan(dp=4, ep=4, skew=3), 6), (Plan(dp=4, zero=1, shard=4), 6)):
        with pytest.raises(PlanError) as error:
            plan.check(count)
        advice = str(error.value).rsplit(": ", 1)[1].removeprefix("nearest is ").removesuffix(" fills it")
        kept = {key: getattr(plan, key) for key in ("tp", "sp", "dp", "ep", "skew", "zero", "shard")}
        assert Plan.parse(advice, **kept).ranks == count


def test_filled() -> None:
    assert Plan(tp=8).filled(64).dp == 8
    assert Plan(tp=8, dp=2).filled(64).dp == 2


@given(st.integers(1, 500), st.integers(1, 500))
def test_nearest_divisor(whole: int, wanted: int) -> None:
    found = nearest_divisor(whole, wanted)
    assert whole % found == 0
    assert all(abs(found - wanted) <= abs(d - wanted) for d in range(1, whole + 1) if whole % d == 0)
