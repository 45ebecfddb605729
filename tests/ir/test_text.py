import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import graphs, small_graph

from foretrace.ir import FormatError, Graph, Op, parse_text, print_text, verify

GOLDEN = Path(__file__).parent / "golden"


def test_golden_text():
    """Regenerate: print_text(small_graph()) into golden/small.txt."""
    text = (GOLDEN / "small.txt").read_text(encoding="utf-8")
    assert print_text(small_graph()) == text
    assert parse_text(text) == small_graph() == verify(small_graph())


@given(graphs())
def test_text_round_trip_is_the_identity(graph):
    text = print_text(verify(graph))
    again = parse_text(text)
    assert print_text(verify(again)) == text
    assert again == graph or "nan" in text
    assert len(text.splitlines()) == 1 + len(graph.symbols) + len(graph.metadata) + len(graph.tensors) + len(graph.ops)


def test_equal_graphs_print_alike():
    g = small_graph()
    ops = tuple(
        Op(o.kind, o.name, o.inputs, o.outputs, dict(reversed(o.attributes.items())), o.module, o.phase, o.work)
        for o in g.ops
    )
    same = Graph(g.name, g.phase, g.symbols, g.tensors, ops, dict(reversed(g.metadata.items())))
    assert same == g
    assert print_text(same) == print_text(g)


def test_comments_blank_lines_and_indents_are_skipped():
    text = "\n\n# one\n" + print_text(small_graph()).replace("\n", "\n  # two\r\n   ")
    assert parse_text(text) == small_graph()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no 'graph"),
        ("graph small", r"line 1: cannot read 'graph small'"),
        ('graph "a" phase=forward\ngraph "b" phase=train', "line 2: expected one graph line"),
        ("node 1", "line 1: expected one graph line, then symbol, meta, tensor or op, got 'node'"),
        ('symbol batch default=x minimum=1 maximum=none ""', "line 1: cannot read"),
        ('meta "a" = "b"\nmeta "a" = "c"', "line 2: 'a' stands twice"),
        ('tensor %1 float32 [] input storage=0 "x"', "line 1: tensor %1 stands where %0 is due"),
        ('tensor %0 float23 [] input storage=0 "x"', "line 1: unknown dtype 'float23'; nearest: float32"),
        ('tensor %0 float32 [] inptu storage=0 "x"', "line 1: 'inptu' is not a valid Role"),
        ('tensor %0 float32 ["a"] input storage=0 "x"', "line 1: expected a list of sizes"),
        ('tensor %0 float32 [mod(a, 0)] input storage=0 "x"', "line 1: .*divided by zero"),
        ('tensor %0 float32 [1] input storage=0 "x\\q"', "line 1: "),
        ('op [0] = matmul "" [1] {} "" forward [1, 2]', "line 1: work has five entries, got 2"),
        ('op [0] = matmulx "" [1] {} "" forward [0, 0, 0, 0, 0]', "line 1: 'matmulx' is not a valid OpKind"),
        ('op [batch] = view "" [1] {} "" forward [0, 0, 0, 0, 0]', "line 1: expected tensor numbers"),
        ('op [0] = view "" [1] {"a": 1, "a": 2} "" forward [0, 0, 0, 0, 0]', "line 1: 'a' stands twice"),
        ('op [0] = view "" [1] {a: 1} "" forward [0, 0, 0, 0, 0]', "line 1: attributes are"),
        ('op [0] = view "" [1] {"a" 1} "" forward [0, 0, 0, 0, 0]', "line 1: attributes are"),
        ('op [0] = view "" [1] {"a": 1 "" forward [0, 0, 0, 0, 0]', "line 1: cannot read"),
        ('op [0] = view "" [1] {"a": 1', "line 1: cannot read"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(FormatError, match=message):
        parse_text(text)


def _parses_or_refuses(text: str) -> None:
    try:
        parse_text(text)
    except FormatError as e:
        assert len(str(e)) < 1000  # noqa: PT017


@given(st.text() | st.text('graph"ophsymbltenfw%[](){}=:, \\\n01').map(lambda t: 'graph "a" phase=forward\n' + t))
def test_any_text_gives_a_graph_or_a_format_error(text):
    _parses_or_refuses(text)


@given(graphs(), st.randoms(use_true_random=False))
def test_damaged_text_gives_a_graph_or_a_format_error(graph, random: random.Random):
    text = list(print_text(graph))
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(text))
        match random.randrange(3):
            case 0:
                del text[at : at + random.randint(1, 20)]
            case 1:
                text.insert(at, random.choice('[](){}"\\,: \n0a-\u2028'))
            case 2:
                text[at:at] = text[random.randrange(len(text)) :][:20]
        text = text or ["x"]
    _parses_or_refuses("".join(text))


def test_hostile_lines_are_refused_quickly():
    for line in ('} "" a [', '} "', "[", '"', '\\"', "{", "(", '"a": '):
        _parses_or_refuses('op [0] = view "" [1] {' + line * 100_000)
        _parses_or_refuses("tensor %0 float32 [" + line * 100_000)
