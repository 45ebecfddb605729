import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import SYMBOLS, bindings, dims, sizes, tree_dim, tree_value, trees

from foretrace.ir import (
    Dim,
    GraphError,
    dim_max,
    dim_min,
    evaluate_dim,
    evaluate_dims,
    parse_dim,
    prod,
    symbol,
)
from foretrace.ir.dim import MAX_TERMS

B, S = symbol("batch"), symbol("seq")


@given(trees, bindings)
def test_arithmetic_agrees_with_python_at_every_binding(tree, at):
    expected = tree_value(tree, at)
    assert evaluate_dim(tree_dim(tree), at) == expected


@given(dims, dims, dims)
def test_ring_laws(a, b, c):
    try:
        left, right = a * (b + c), a * b + a * c
        product = (a * b) * c
    except GraphError:
        assume(False)
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a * b == b * a
    assert product == a * (b * c)
    assert left == right
    assert a + 0 == a == a * 1
    assert a * 0 == 0 == a - a
    assert hash(a + b) == hash(b + a)


@given(dims)
def test_parse_reads_what_str_prints(d):
    assert parse_dim(str(d)) == d
    assert type(parse_dim(str(d))) is type(d)


@given(dims)
def test_a_dim_is_never_constant(d):
    assert isinstance(d, int) or d.symbols
    assert type(d) in (int, Dim)


@given(st.lists(dims, max_size=5), st.lists(bindings, min_size=1, max_size=4))
def test_vectorised_evaluation_equals_scalar(expressions, points):
    rows = []
    for point in points:
        try:
            rows.append([evaluate_dim(d, point) for d in expressions])
        except GraphError:  # a divisor that is zero here
            assume(False)
    assume(all(abs(v) < 1 << 40 for row in rows for v in row))
    arrays = {name: np.array([p[name] for p in points]) for name in SYMBOLS}
    together = evaluate_dims(expressions, arrays)
    assert together.shape == (len(expressions), len(points))
    np.testing.assert_array_equal(together, np.array(rows, float).reshape(len(points), -1).T)
    np.testing.assert_array_equal(evaluate_dims(expressions, points[0]), np.array(rows[0], float))


@given(sizes, bindings)
def test_sizes_are_never_negative(d, at):
    assert evaluate_dim(d, at) >= 0


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("batch*seq // seq", "batch"),
        ("(6*batch*seq + 4*seq) // (2*seq)", "3*batch + 2"),
        ("(256*batch + 7) // 8", "32*batch"),
        ("(8*batch + seq + 17) // 8", "batch + floordiv(seq + 1, 8) + 2"),
        ("mod(8*batch + 3, 8)", "3"),
        ("mod(batch*seq, batch)", "0"),
        ("mod(5, seq)", "mod(5, seq)"),
        ("batch // batch", "1"),
        ("0 // batch", "0"),
        ("(batch + 1) // (batch + 1)", "1"),
        ("floordiv(batch, -2)", "floordiv(batch, -2)"),
        ("min(seq, batch)", "min(batch, seq)"),
        ("max(seq, seq)", "seq"),
        ("7 // 2 - -3", "6"),
        ("-batch - -batch", "0"),
        (" ( batch\n+ 1 ) ", "batch + 1"),
    ],
)
def test_canonical_form(text, same):
    assert str(parse_dim(text)) == same
    assert parse_dim(same) == parse_dim(text)


def test_printing():
    assert str(B * S * 2 + 1 - S) == "2*batch*seq - seq + 1"
    assert str(-B) == "-batch"
    assert repr(B // 3) == "floordiv(batch, 3)"
    assert str(dim_min(B, 4) + dim_max(3, S)) == "max(3, seq) + min(4, batch)"
    assert prod([2, B, 3, S]) == 6 * B * S
    assert prod([]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "batch.size", "__import__('os')", "batch[0]", "f(batch)", "min(batch)", "min(a, b, c)", "min(a, key=b)",
        "batch / 2", "batch ** 2", "9**9**9**9", "1.5*batch", "a if b else c", "lambda: 0", "True", "'text'", "a\0b",
        "a # comment", "0x1for x in y", "1_000", "ﬁ", "größe", "a, b", "(a", "a @ b", "~a", "+a", "none + 1", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_dim_is_refused(text):
    with pytest.raises(GraphError, match="cannot read the dim"):
        parse_dim(text)


@pytest.mark.parametrize("text", ["batch // 0", "mod(batch, 0)", "mod(7, 0)", "7 // 0", "floordiv(a, b - b)"])
def test_division_by_zero_is_named(text):
    with pytest.raises(GraphError, match="divided by zero"):
        parse_dim(text)


def test_division_by_zero_at_the_given_sizes():
    with pytest.raises(GraphError, match=r"floordiv\(batch, seq\) divides by zero"):
        evaluate_dim(B // S, {"batch": 4, "seq": 0})
    with pytest.raises(GraphError, match=r"mod\(batch, seq\) divides by zero"):
        evaluate_dims([B % S], {"batch": 4, "seq": np.array([1, 0])})
    for divide in (lambda: B // 0, lambda: B % 0, lambda: 5 % B // 0):
        with pytest.raises(GraphError, match="divided by zero"):
            divide()


def _sum(name: str, n: int) -> str:
    return "(" + "+".join(f"{name}{i}" for i in range(n)) + ")"


def _nested(name: str, levels: int) -> str:
    if not levels:
        return name
    x, y = _nested("x", levels - 1), _nested("y", levels - 1)
    return "*".join([f"(floordiv({x},3)+floordiv({y},5)+z+1)"] * 8)


@pytest.mark.parametrize(
    "bomb",
    [
        "*".join(["(a+b+c)"] * 1400),
        "(" * 4900 + "a" + ")" * 4900,
        "-" * 9000 + "a",
        "+".join(["a"] * 4900),
        _sum("a", 1500),
        _sum("a", 250) + "*" + _sum("b", 250),
        "*".join(["a"] * 17),
        "min(a," * 1000 + "b" + ")" * 1000,
        _nested("x", 2),
        "9" * 4000 + "*a*" + "9" * 4000,
        "9" * 9000,
        "a" * 9000,
        "a + " * 30_000 + "a",
    ],
    ids=lambda bomb: bomb[:12],
)
def test_bombs_are_refused(bomb):
    with pytest.raises(GraphError) as error:
        parse_dim(bomb)
    assert len(str(error.value)) < 300


def test_arithmetic_has_the_limits_of_the_parser():
    """What arithmetic builds, a saved graph can be read back with."""
    many = sum((symbol(f"a{i}") for i in range(MAX_TERMS)), 0)
    assert parse_dim(str(many)) == many
    with pytest.raises(GraphError, match="terms"):
        many + symbol("b")
    with pytest.raises(GraphError, match="degree 17"):
        prod([B] * 17)
    with pytest.raises(GraphError, match="bit"):
        B * (1 << 1001)


def test_nested_divisions_read_back_until_they_are_refused():
    deep, levels = B, 0
    try:
        while levels < 1000:
            deep = (deep + 1) // 2
            assert parse_dim(str(deep)) == deep
            levels += 1
    except GraphError as e:
        assert "characters" in str(e)  # noqa: PT017
    assert 50 < levels < 200


@pytest.mark.parametrize("name", ["batch", "N", "_x1", "unk__0", "match", "Inf"])
def test_symbol_names(name):
    assert str(symbol(name)) == name
    assert parse_dim(name) is not None
    assert parse_dim(name) == symbol(name)


@pytest.mark.parametrize(
    "name", ["", "1a", "a-b", "größe", "ﬁ", "class", "None", "none", "nan", "min", "floordiv", "a" * 101, "a b"]
)
def test_names_that_would_not_read_back_are_refused(name):
    with pytest.raises(GraphError, match="symbol names are ASCII identifiers such as 'batch'"):
        symbol(name)


def test_unbound_symbol_names_the_flag():
    with pytest.raises(GraphError, match="'seq' has no value; give it one with --dim seq=VALUE"):
        evaluate_dim(B * S, {"batch": 2})


def test_truth_and_foreign_types():
    with pytest.raises(GraphError, match="truth of the symbolic dim batch"):
        bool(B)
    operations = (
        lambda: B + 1.5,
        lambda: B * "x",
        lambda: B // 1.5,
        lambda: 1.5 // B,
        lambda: B % None,
        lambda: 2.0 % B,
    )
    for operation in operations:
        with pytest.raises(TypeError):
            operation()
    assert B != "batch"
    assert symbol("batch") == B


def test_evaluation_of_large_numbers():
    assert evaluate_dim(B * B, {"batch": 10**30}) == 10**60
    assert evaluate_dims([B * B], {"batch": np.int64(1 << 40)})[0] == float(1 << 80)
    with pytest.raises(GraphError, match="too large"):
        evaluate_dims([B * B], {"batch": 10**200})
    assert evaluate_dims([], {}).shape == (0,)


def test_a_dim_survives_the_trip_to_another_process():
    """Python hashes text differently in every process."""
    code = (
        "import pickle, sys; from foretrace.ir import symbol\n"
        "d = pickle.loads(sys.stdin.buffer.read())\n"
        "same = 2 * symbol('batch') // 3 + symbol('seq')\n"
        "assert d == same and len({d, same}) == 1"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(2 * B // 3 + S), check=True)
