import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import values

from foretrace.ir import ForetraceError, FormatError, GraphError, Role, symbol
from foretrace.ir.values import format_value, parse_value, quote


def same(a, b):
    """Equal in value and type; a nan equals a nan, -0.0 is not 0.0."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) if a == a else b != b
    return type(a) is type(b) and a == b


@given(values)
def test_a_value_reads_back(value):
    text = format_value(value)
    assert same(parse_value(text), value)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (1, "1"),
        (1.0, "1.0"),
        (1e22, "1e+22"),
        (-math.inf, "-inf"),
        ("none", '"none"'),
        (1 << 63, "9223372036854775808"),
        (symbol("batch") * 2, "2*batch"),
        ((1, (), ("a", None)), '[1, [], ["a", none]]'),
        ("a\u2028b\x85\n", '"a\\u2028b\\u0085\\n"'),
    ],
)
def test_written_form(value, text):
    assert format_value(value) == text
    assert same(parse_value(text), value)


def test_subclasses_of_plain_types_are_written_plainly():
    assert format_value(np.float64(0.5)) == "0.5"
    assert format_value(Role.INPUT) == '"input"'
    assert format_value([1, 2]) == "[1, 2]"


@pytest.mark.parametrize("value", [object(), {1}, 1j, b"x", np.int64(3), 1 << 4000])
def test_what_an_attribute_cannot_hold(value):
    with pytest.raises(GraphError, match="an attribute cannot hold"):
        format_value(value)


def test_nesting_is_limited_alike_on_both_sides():
    value = 1
    for _ in range(32):
        value = (value,)
    assert parse_value(format_value(value)) == value
    with pytest.raises(GraphError, match="an attribute cannot hold"):
        format_value((value,))
    with pytest.raises(FormatError):
        parse_value("[" * 100_000)


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", "[1", '"', '"a', "1 2", "[1 2]", "[1}", "{", "1, 2", "1_000", "٣", "0x10", "1e", ".5",
     "9" * 5000, "None", '"a" b', "batch)", "(", '"\n"', '"\\ud800'],
)  # fmt: skip
def test_what_is_no_value_is_refused(text):
    with pytest.raises(FormatError) as error:
        parse_value(text)
    assert len(str(error.value)) < 300


@given(st.text(max_size=40) | st.text('[]{}(),:" \\0123456789.e-+abctrufalsn', max_size=40))
def test_any_text_gives_a_value_or_a_format_error(text):
    try:
        parse_value(text)
    except ForetraceError as e:
        assert isinstance(e, FormatError)  # noqa: PT017


@given(st.text())
def test_quoted_text_stays_on_one_line(text):
    assert len(quote(text).splitlines()) == 1
