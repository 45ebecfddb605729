"""The plans of a space: all that fit, none that do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.transforms.candidates import Sizes, Space, plans_for
from foretrace.transforms.plan import PlanError
from tests.transforms.shard_models import captured

pytestmark = pytest.mark.slow


def test_sizes_of_a_model() -> None:
    sizes = Sizes.of(captured("mixtral"))
    assert (sizes.heads, sizes.layers, sizes.experts, sizes.trains) == (4, 2, 8, True)


@given(count=st.sampled_from([1, 2, 4, 8, 16, 64]), batch=st.sampled_from([8, 16, 48, 64]))
def test_every_plan_fits_and_is_named_once(count: int, batch: int) -> None:
    graph = captured("llama")
    try:
        plans = plans_for(graph, count, batch, Space(interleave=(1, 2), zero=(0, 1, 3)))
    except PlanError:
        return
    assert len(set(plans)) == len(plans)
    for plan in plans:
        plan.check(count)
        assert plan.micro_batches(batch) >= 1
        assert 4 % plan.tp == 0  # KV heads
        assert plan.stages <= 2
        assert plan.sp == (plan.tp > 1)


def test_no_plan_says_what_limits() -> None:
    with pytest.raises(PlanError, match=r"2 layers, heads in multiples of 4.*try another --batch"):
        plans_for(captured("llama"), 64, 3)


def test_experts_are_divided_where_there_are_some() -> None:
    space = Space(tp=(1,), pp=(1,), ep=(1, 4, 16), microbatch=(1,), recompute=("none",), zero=(0,))
    assert {p.ep for p in plans_for(captured("mixtral"), 16, 16, space)} == {1, 4}
    assert {p.ep for p in plans_for(captured("llama"), 16, 16, space)} == {1}
