"""Quantities as people write them ("3.35 TB/s", "80 GiB", "1.6 us") to SI floats, and back.

Prefixes are exact: ``GB`` is 10^9 bytes, ``GiB`` 2^30; ``b`` is a bit, ``B`` a byte, so "400 Gb/s" is
5e10 B/s. Letters keep their case (``mW`` is not ``MW``). No unit is ever guessed.
"""

import difflib
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from foretrace.ir.errors import ForetraceError, nearest_names

_ONE: Final = Decimal(1)
_DECIMAL: Final = {prefix: Decimal(10) ** (3 * n) for n, prefix in enumerate("kMGTPE", 1)}
_BINARY: Final = {f"{prefix}i": Decimal(1024) ** n for n, prefix in enumerate("KMGTP", 1)}
_SMALL: Final = {
    "m": Decimal("1e-3"),
    "u": Decimal("1e-6"),
    "µ": Decimal("1e-6"),
    "μ": Decimal("1e-6"),
    "n": Decimal("1e-9"),
    "p": Decimal("1e-12"),
}  # both micro signs that keyboards make


class QuantityError(ForetraceError):
    """A quantity without a unit, with a unit of another dimension, or out of range."""


@dataclass(frozen=True)
class Dimension:
    """One kind of quantity: its units, each as {symbol: SI factor}, and how it is written.

    `shown` lists the symbols that `format_quantity` picks from, largest last; `example` goes into
    error messages.
    """

    name: str
    units: dict[str, Decimal]
    shown: tuple[str, ...]
    example: str

    def nearest(self, unit: str) -> str | None:
        """The unit that *unit* was most likely meant to be: ``TFLOPs`` finds ``TFLOP/s``."""
        letters = _letters(unit)
        meant = {letters, letters + "s", letters.replace("ps", "s")}
        same = [u for u in self.units if _letters(u) in meant]
        found = sorted(same, key=lambda u: -difflib.SequenceMatcher(None, u, unit).ratio())
        return next(iter(found or nearest_names(unit, self.units, 1)), None)


def _letters(unit: str) -> str:
    """The unit in lower case without signs: what ``TFLOPs``, ``tflop/s`` and ``TFLOP/s`` share."""
    return re.sub(r"[^a-zµμ]", "", unit.lower())


def _scaled(bases: dict[str, Decimal], *prefix_sets: dict[str, Decimal]) -> dict[str, Decimal]:
    units = dict(bases)
    for prefixes in prefix_sets:
        for symbol, base in bases.items():
            units |= {prefix + symbol: base * factor for prefix, factor in prefixes.items()}
    return units


def _shown(symbol: str, prefixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + symbol for prefix in prefixes)


_BIG: Final = ("", *_DECIMAL)
_BITS_AND_BYTES: Final = {"B": _ONE, "b": Decimal("0.125")}
_RATE: Final = {"FLOP/s": _ONE, "OP/s": _ONE}
_ENERGY: Final = {"J/FLOP": _ONE, "J/OP": _ONE}

DIMENSIONS: Final[dict[str, Dimension]] = {
    d.name: d
    for d in (
        Dimension("time", _scaled({"s": _ONE}, _SMALL), (*_shown("s", ("p", "n", "u", "m")), "s"), "1.6 us"),
        Dimension("frequency", _scaled({"Hz": _ONE}, _DECIMAL), _shown("Hz", _BIG), "1.755 GHz"),
        Dimension("size", _scaled(_BITS_AND_BYTES, _DECIMAL, _BINARY), _shown("B", ("", *_BINARY)), "80 GiB"),
        Dimension(
            "bandwidth",
            _scaled({f"{u}/s": f for u, f in _BITS_AND_BYTES.items()}, _DECIMAL, _BINARY),
            _shown("B/s", _BIG),
            "3.35 TB/s",
        ),
        Dimension("compute rate", _scaled(_RATE, _DECIMAL), _shown("FLOP/s", _BIG), "989.4 TFLOP/s"),
        Dimension("work", _scaled({"FLOP": _ONE, "OP": _ONE}, _DECIMAL), _shown("FLOP", _BIG), "2.5 TFLOP"),
        Dimension("power", _scaled({"W": _ONE}, _SMALL, _DECIMAL), ("mW", "W", "kW", "MW", "GW"), "700 W"),
        Dimension(
            "energy", _scaled({"J": _ONE}, _SMALL, _DECIMAL), _shown("J", ("p", "n", "u", "m", "", "k", "M")), "1 kJ"
        ),
        Dimension(
            "energy of work", _scaled(_ENERGY, _SMALL), _shown("J/FLOP", ("p", "n", "u", "m", "")), "0.9 pJ/FLOP"
        ),
    )
}
"""Every dimension by name: time (s), frequency (Hz), size (bytes), bandwidth (bytes/s), compute rate
(FLOP/s), work (FLOP), power (W), energy (J), energy of work (J/FLOP)."""

_QUANTITY: Final = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*(\S*)\s*", re.ASCII)


def parse_quantity(text: str, dimension: str, *, zero: bool = False) -> float:
    """The SI value of *text*, a number and a unit of *dimension* (a key of `DIMENSIONS`).

    Positive and finite; zero only where *zero* allows it. Raises `QuantityError`.
    """
    dim = DIMENSIONS[dimension]
    match = _QUANTITY.fullmatch(text) if len(text) <= 80 else None
    if match is None:
        raise QuantityError(f'expected e.g. "{dim.example}", got {quoted(text)}')
    number, unit = match.groups()
    if not unit:
        raise QuantityError(f'expected e.g. "{dim.example}", got {quoted(text)}')
    if unit not in dim.units:
        raise QuantityError(_unit_message(unit, dim))
    value = float(Decimal(number) * dim.units[unit])
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        wanted = "zero or more" if zero else "more than zero"
        raise QuantityError(f"expected a finite {dim.name} of {wanted}, got {quoted(text)}")
    return value


def format_quantity(value: float, dimension: str, *, digits: int | None = 4) -> str:
    """*value* (SI) as text of *dimension*: "3.35 TB/s". Sizes take binary prefixes ("80 GiB").

    *digits* significant digits; None writes all of them, so that `parse_quantity` gives *value* back
    to the last few bits. A value that is not finite is written as such ("inf B/s").
    """
    dim = DIMENSIONS[dimension]
    rounded = float(f"{value:.{digits or 15}g}")
    fitting = [unit for unit in dim.shown if abs(rounded) >= float(dim.units[unit]) * (1 - 1e-12)]
    unit = fitting[-1] if fitting and math.isfinite(value) else dim.shown[0]
    if value == 0 or not math.isfinite(value):
        unit = min(dim.units, key=lambda u: (abs(dim.units[u] - _ONE), len(u)))
    number = value / float(dim.units[unit])
    text = f"{number:.{digits or 15}g}"
    if 1 <= abs(number) < 1e15 and "e" in text:  # 1.024e+03 with few digits: people read 1024
        text = f"{number:.0f}"
    return f"{text} {unit}"


def quoted(value: object) -> str:
    """*value* in double quotes, shortened and without control characters, for an error message."""
    return f'"{printable(str(value), 60)}"'


def printable(text: str, longest: int) -> str:
    """*text* of at most *longest* characters, ``?`` for those that a terminal would act on."""
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def _unit_message(unit: str, dim: Dimension) -> str:
    near = dim.nearest(unit[:20])
    hint = f", did you mean {near!r}?" if near else f': expected e.g. "{dim.example}"'
    return f"unit {unit[:20]!r} not understood{hint}"
