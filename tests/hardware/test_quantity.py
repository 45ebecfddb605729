"""Quantities: what is read, what is refused with which words, and that writing and reading agree."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware.quantity import DIMENSIONS, QuantityError, format_quantity, parse_quantity

POSITIVE = st.floats(1e-15, 1e20, allow_nan=False)
ANY_DIMENSION = st.sampled_from(sorted(DIMENSIONS))


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("3.35 TB/s", "bandwidth", 3.35e12),
        ("3.35TB/s", "bandwidth", 3.35e12),
        ("400 Gb/s", "bandwidth", 5e10),
        ("2 GiB/s", "bandwidth", 2 * 2**30),
        ("80 GB", "size", 80e9),
        ("80 GiB", "size", 80 * 2**30),
        ("16 Gb", "size", 2e9),
        ("989.4 TFLOP/s", "compute rate", 989.4e12),
        ("624 TOP/s", "compute rate", 624e12),
        ("1.755 GHz", "frequency", 1.755e9),
        ("700 W", "power", 700),
        ("1 mW", "power", 1e-3),
        ("14 pJ/FLOP", "energy of work", 14e-12),
        ("0.5 pJ/OP", "energy of work", 0.5e-12),
        ("1.6 us", "time", 1.6e-6),
        ("1.6 µs", "time", 1.6e-6),
        ("1.6e-6 s", "time", 1.6e-6),
        (".5 ns", "time", 0.5e-9),
    ],
)
def test_reads(text: str, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension) == value


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("3.35", "bandwidth", 'expected e.g. "3.35 TB/s", got "3.35"'),
        ("fast", "bandwidth", 'expected e.g. "3.35 TB/s", got "fast"'),
        ("", "size", 'expected e.g. "80 GiB", got ""'),
        ("3 TFLOPs", "compute rate", "unit 'TFLOPs' not understood, did you mean 'TFLOP/s'?"),
        ("3 TOPS", "compute rate", "unit 'TOPS' not understood, did you mean 'TOP/s'?"),
        ("3 TB", "bandwidth", "unit 'TB' not understood, did you mean 'TB/s'?"),
        ("3 Gbps", "bandwidth", "unit 'Gbps' not understood, did you mean 'Gb/s'?"),
        ("3 GBps", "bandwidth", "unit 'GBps' not understood, did you mean 'GB/s'?"),
        ("3 ghz", "frequency", "unit 'ghz' not understood, did you mean 'GHz'?"),
        ("3 parsecs!", "power", "unit 'parsecs!' not understood: expected e.g. \"700 W\""),
        ("0 s", "time", 'expected a finite time of more than zero, got "0 s"'),
        ("-1 s", "time", 'expected a finite time of more than zero, got "-1 s"'),
        ("1e999 s", "time", 'expected a finite time of more than zero, got "1e999 s"'),
        ("nan s", "time", 'expected e.g. "1.6 us", got "nan s"'),
        ("1e9999999999 s", "time", 'expected e.g. "1.6 us", got "1e9999999999 s"'),
        ("٣ s", "time", 'expected e.g. "1.6 us", got "٣ s"'),
    ],
)
def test_refuses(text: str, dimension: str, message: str) -> None:
    with pytest.raises(QuantityError) as error:
        parse_quantity(text, dimension)
    assert str(error.value) == message


def test_zero_only_where_allowed() -> None:
    assert parse_quantity("0 s", "time", zero=True) == 0


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (3.35e12, "bandwidth", "3.35 TB/s"),
        (85899345920.0, "size", "80 GiB"),
        (1023.99 * 2**30, "size", "1 TiB"),
        (999.99e12, "bandwidth", "1 PB/s"),
        (1.6e-6, "time", "1.6 us"),
        (1234.5, "time", "1234 s"),
        (98765.0, "time", "98765 s"),
        (0.0, "time", "0 s"),
        (-2e9, "bandwidth", "-2 GB/s"),
        (math.inf, "size", "inf B"),
    ],
)
def test_writes(value: float, dimension: str, text: str) -> None:
    assert format_quantity(value, dimension) == text


@given(POSITIVE, ANY_DIMENSION)
def test_written_exactly_reads_back(value: float, dimension: str) -> None:
    assert math.isclose(parse_quantity(format_quantity(value, dimension, digits=None), dimension), value, rel_tol=1e-13)


@given(POSITIVE, ANY_DIMENSION, st.integers(1, 15))
def test_written_short_reads_back_rounded(value: float, dimension: str, digits: int) -> None:
    text = format_quantity(value, dimension, digits=digits)
    assert math.isclose(parse_quantity(text, dimension), value, rel_tol=10.0 ** (1 - digits))


@given(st.text(max_size=100), ANY_DIMENSION)
def test_any_text_is_read_or_refused(text: str, dimension: str) -> None:
    try:
        value = parse_quantity(text, dimension)
    except QuantityError:
        return
    assert 0 < value < math.inf


def test_messages_stay_short_and_printable() -> None:
    with pytest.raises(QuantityError) as error:
        parse_quantity("9" * 10_000 + "\x1b[31m", "size")
    assert len(str(error.value)) < 120
    assert str(error.value).isprintable()
