"""The Plan: how a model is spread over accelerators and run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite
from operator import index
from typing import Any, Final

from foretrace.ir import ForetraceError, UnknownNameError

AXES: Final = ("tp", "cp", "dp", "pp")
"""The axes of the mesh of accelerators, the fastest varying rank number first (Megatron-LM's order tp-cp-ep-dp-pp)."""

RECOMPUTE: Final = ("none", "selective", "full")


class PlanError(ForetraceError):
    """A plan that cannot be run; says which factor is wrong and names the nearest that works."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Degrees of parallelism and how the step runs; ranks = tp · cp · dp · pp.

    Written ``tp=8,pp=4,dp=16,schedule=1f1b``. Raises `PlanError` where keys contradict one another.
    """

    tp: int = 1
    """Tensor parallel ranks: matrices and attention heads are divided among them."""
    sp: bool = False
    """Sequence parallel: what tensor parallel leaves whole (norms, dropout) is divided along the sequence."""
    pp: int = 1
    """Pipeline ranks."""
    interleave: int = 1
    """Stages (model chunks) that each pipeline rank holds."""
    dp: int = 1
    """Data parallel replicas."""
    zero: int = 0
    """What data parallel ranks divide: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too (FSDP)."""
    shard: int = 0
    """Ranks that `zero` divides among; 0: all data parallel ranks. Fewer than dp is HSDP: replicas of shards."""
    ep: int = 1
    """Expert parallel ranks, taken from the data (and context) parallel ones, as in Megatron-LM."""
    cp: int = 1
    """Context parallel ranks: the sequence is divided, attention included."""
    ring: bool = False
    """Context parallel attention passes keys around a ring; else it gathers them."""
    microbatch: int = 1
    """Samples of one micro-batch of one replica."""
    schedule: str = ""
    """Pipeline schedule by name, or a file; empty: 1f1b, interleaved where `interleave` > 1."""
    recompute: str = "none"
    """Activations computed again in the backward: none, selective (attention), full, or a module pattern."""
    skew: float = 1.0
    """Tokens of the most loaded expert-parallel rank over the mean (a routing distribution's imbalance)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = _checked(f.name, getattr(self, f.name), f.type)
            object.__setattr__(self, f.name, value)
            least = 0 if f.name in ("zero", "shard") else 1
            if f.type is int and value < least:
                raise PlanError(f"plan: {f.name}={value}: expected {least} or more")
        if self.zero > 3:
            raise PlanError(f"plan: zero={self.zero}: expected 0, 1, 2 or 3")
        self._check_alone()
        self._check_experts()
        if self.shard and self.dp * self.cp % self.shard:
            near = nearest_divisor(self.dp * self.cp, self.shard)
            raise PlanError(
                f"plan: shard={self.shard} does not divide dp · cp = {self.dp * self.cp}: nearest is shard={near}"
            )
        if self.zero >= 2 and self.pp > 1 and self.schedule not in ("", "gpipe", "1f1b", "interleaved"):
            raise PlanError(
                f"plan: zero={self.zero} with schedule={self.schedule}: gradients that are divided are summed at every "
                "micro-batch, which this schedule splits in two; use zero=1"
            )

    def _check_alone(self) -> None:
        """Keys that say how another one is done, and are nothing without it."""
        if self.sp and self.tp == 1:
            raise PlanError("plan: sp=1 without tp: sequence parallel divides among tensor parallel ranks; add tp=2")
        if self.ring and self.cp == 1:
            raise PlanError("plan: ring=1 without cp: there is nothing to pass around; add cp=2")
        if self.interleave > 1 and self.pp == 1:
            raise PlanError(f"plan: interleave={self.interleave} without pp: there is nothing to interleave; add pp=2")
        if self.schedule and self.pp == 1:
            raise PlanError(f"plan: schedule={self.schedule} without pp: expected pp=2 or more")
        if self.shard and not self.zero:
            raise PlanError(f"plan: shard={self.shard} without zero: nothing is divided; add zero=1")

    def _check_experts(self) -> None:
        if self.dp * self.cp % self.ep:
            near = nearest_divisor(self.dp * self.cp, self.ep)
            raise PlanError(f"plan: ep={self.ep} does not divide dp · cp = {self.dp * self.cp}: nearest is ep={near}")
        if not 1 <= self.skew <= max(self.ep, 1):
            if self.skew > 1 and self.ep == 1:
                raise PlanError(f"plan: skew={self.skew:g} without ep: no rank has more experts' tokens; add ep=2")
            raise PlanError(f"plan: skew={self.skew:g}: expected 1 (balanced) to ep={self.ep} (all on one rank)")

    @property
    def ranks(self) -> int:
        """How many accelerators it takes."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def stages(self) -> int:
        """Model chunks over all pipeline ranks."""
        return self.pp * self.interleave

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters and see other samples or tokens: what gradients are summed over."""
        return self.dp * self.cp

    @property
    def shards(self) -> int:
        """Ranks among which ZeRO divides."""
        return (self.shard or self.replicas) if self.zero else 1

    def stride(self, axis: str) -> int:
        """Ranks from one member of a group along *axis* to the next (`AXES`; ``ep`` lies along cp and dp)."""
        if axis in ("ep", "replicas"):
            return self.tp
        steps = {"tp": 1, "cp": self.tp, "dp": self.tp * self.cp, "pp": self.tp * self.cp * self.dp}
        return steps[axis]

    def place(self, rank: int) -> dict[str, int]:
        """Where *rank* stands on each of `AXES`."""
        found = {}
        for axis in AXES:
            rank, found[axis] = divmod(rank, getattr(self, axis))
        return found

    def micro_batches(self, batch: int) -> int:
        """Micro-batches that each replica runs of a global *batch*. Raises `PlanError` where it does not divide."""
        each = self.dp * self.microbatch
        if batch % each or batch < each:
            near = max(round(batch / each), 1) * each
            of_replica, rest = divmod(batch, self.dp)
            other = "" if rest or not of_replica else f", or microbatch={nearest_divisor(of_replica, self.microbatch)}"
            raise PlanError(
                f"plan: --batch {batch} is not a multiple of dp · microbatch = {self.dp} · {self.microbatch} = {each}: "
                f"nearest is --batch {near}{other}"
            )
        return batch // each

    def check(self, count: int) -> None:
        """Raise `PlanError` unless the plan takes *count* accelerators; names the dp that would, or the nearest."""
        if self.ranks == count:
            return
        others = self.tp * self.cp * self.pp
        product = f"tp · cp · dp · pp = {self.tp} · {self.cp} · {self.dp} · {self.pp} = {self.ranks}"
        fills = count % others == 0
        near = f"{self._with(dp=count // others)} fills it" if fills else f"nearest is {self._nearest(count)}"
        raise PlanError(f"plan: {product} and the system has {count} accelerators: {near}")

    def _nearest(self, count: int) -> str:
        """The nearest plan for *count* accelerators: each factor in turn a divisor of what is left."""
        found, left = {}, count
        for axis in ("tp", "cp", "pp"):
            found[axis] = nearest_divisor(left, getattr(self, axis))
            left //= found[axis]
        return self._with(**found, dp=left)

    def _with(self, **degrees: int) -> str:
        """*degrees* as a plan writes them, and with them the keys that they leave no room for."""
        sizes = {axis: getattr(self, axis) for axis in AXES} | degrees
        among = sizes["dp"] * sizes["cp"]
        found = dict(degrees)
        if self.sp and sizes["tp"] == 1:
            found["sp"] = 0
        if self.ring and sizes["cp"] == 1:
            found["ring"] = 0
        if self.interleave > 1 and sizes["pp"] == 1:
            found["interleave"] = 1
        if among % self.ep:
            found["ep"] = nearest_divisor(among, self.ep)
        if self.skew > found.get("ep", self.ep):
            found["skew"] = found["ep"]
        if self.shard and among % self.shard:
            found["shard"] = nearest_divisor(among, self.shard)
        return ",".join(f"{key}={n}" for key, n in found.items())

    @classmethod
    def parse(cls, text: str, **given: Any) -> "Plan":
        """The plan that *text* writes (``tp=8,pp=4``); *given* keys hold where it does not name them.

        Raises `PlanError` for text that is no plan, `UnknownNameError` for a key that does not exist.
        """
        values: dict[str, Any] = dict(given)
        seen: set[str] = set()
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if not equals or not value:
                raise PlanError(f"plan: {part!r}: expected key=value, e.g. tp=8,pp=4,dp=16")
            if key in seen:
                raise PlanError(f"plan: {key} is given twice")
            seen.add(key)
            values[key] = value
        return cls.of(values)

    @classmethod
    def of(cls, plan: "Plan | str | Mapping[str, Any] | None") -> "Plan":
        """*plan* however it is written; None: one accelerator.

        Raises `PlanError` for what is no plan, `UnknownNameError` for a key that does not exist.
        """
        if plan is None:
            return cls()
        if isinstance(plan, Plan):
            return plan
        if isinstance(plan, str):
            return cls.parse(plan)
        if not isinstance(plan, Mapping):
            raise PlanError(f"plan: expected text (tp=8,pp=4), a mapping of keys or a Plan, got {plan!r:.60}")
        known = {f.name: f.type for f in fields(cls)}
        for key in plan:
            if key not in known:
                raise UnknownNameError("plan key", str(key), known, f"there is: {', '.join(known)}")
        return cls(**{key: _value(key, v, known[key]) if isinstance(v, str) else v for key, v in plan.items()})

    def __str__(self) -> str:
        """As the command line takes it, defaults left out."""
        shown = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                whole = f.type is bool or (f.type is float and value == int(value))
                shown.append(f"{f.name}={int(value) if whole else value}")
        return ",".join(shown)

    def filled(self, count: int) -> "Plan":
        """This plan with dp raised to fill *count* accelerators where it divides them."""
        others = self.tp * self.cp * self.pp
        return replace(self, dp=count // others) if self.dp == 1 and count % others == 0 else self


_EXPECTED: Final[Mapping[Any, str]] = {bool: "0 or 1", int: "a whole number", float: "a number", str: "text"}


def _value(key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"0": False, "1": True, "false": False, "true": True}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise PlanError(f"plan: {key}={text}: expected {_EXPECTED[kind]}") from None


def _checked(key: str, value: Any, kind: Any) -> Any:
    """*value* as its *kind*; numpy's numbers are numbers too."""
    found = value
    try:
        if kind is bool:
            found = {0: False, 1: True}[value]
        elif kind is int:
            found = index(value)
        elif kind is float:
            found = float(value)
        right = not (kind is float and not isfinite(found)) and not (kind is not bool and isinstance(value, bool))
    except (KeyError, TypeError, ValueError):
        right = False
    if not right or (kind is str) != isinstance(value, str):
        raise PlanError(f"plan: {key}={value}: expected {_EXPECTED[kind]}")
    if key == "recompute" and value not in RECOMPUTE and not any(c in value for c in ".*?["):
        near = get_close_matches(value, RECOMPUTE, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise PlanError(f"plan: recompute={value}: expected {', '.join(RECOMPUTE)} or a module pattern{meant}")
    return found


def nearest_divisor(whole: int, wanted: int) -> int:
    """The divisor of *whole* nearest to *wanted* (the smaller of two as near)."""
    divisors = [d for d in range(1, min(whole, 4096) + 1) if whole % d == 0] + [whole]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
