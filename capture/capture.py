"""`capture_graph`: from a model's name (or the model itself) to a verified Graph."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from foretrace.ir import Graph, UnknownNameError, parse_dtype

from .build import correspond, merge
from .models import PretrainedModel, UserModel, resolve_model
from .phases import Step, check_phase, make_step, symbols_of
from .recorder import Recording, record
from .shorten import cut, plan_cut
from .symbolic import DimSolver, Point, SymbolicError, choose_points

ATTENTIONS = ("sdpa", "eager")
Progress = Callable[[str], None]


def capture_graph(
    model: "str | PretrainedModel | UserModel",
    *,
    phase: str = "forward",
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    progress: Progress = lambda _: None,
) -> Graph:
    """Capture one phase of *model* on the meta device: no weights, no accelerator.

    The graph leaves batch, seq (and context, in decode) open; *batch*, *seq* and *context* become their defaults and
    one of the points it is verified at. *dtype* is the model's own where not given. *progress* is told each stage.
    Raises `ForetraceError` for what cannot be captured, naming the cause.
    """
    check_phase(phase)
    if attention not in ATTENTIONS:
        raise UnknownNameError("attention", attention, ATTENTIONS)
    if isinstance(model, str):
        progress(f"finding {model}")
        model = resolve_model(model)
    if isinstance(model, UserModel):
        from .user import capture_user_model

        return capture_user_model(model, phase)
    given = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None}
    return _Capture(model, phase, given, dtype, attention, progress).graph()


class _Capture:
    """One capture of one pretrained model: tries the most open set of symbols first, then fewer."""

    def __init__(
        self,
        model: PretrainedModel,
        phase: str,
        given: Mapping[str, int],
        dtype: str | None,
        attention: str,
        progress: Progress,
    ) -> None:
        self.model, self.phase, self.progress = model, phase, progress
        self.symbols = symbols_of(phase, given)
        self.given = given
        progress(f"building {model.name} on meta")
        self.dtype = parse_dtype(dtype or model.dtype).name
        self.root = model.build(self.dtype, attention)
        self.metadata = {
            "source": model.name,
            "dtype": self.dtype,
            "attention": attention,
            "recorder": "dispatcher",
            "torch": torch.__version__.split("+")[0],
        }

    def graph(self) -> Graph:
        """The graph over as many symbols as the model leaves open at the wanted sizes."""
        wanted = {n: s.default for n, s in self.symbols.items()}
        free = [n for n in self.symbols if not (n == "seq" and self.phase == "decode" and wanted["seq"] == 1)]
        attempts = [free, [n for n in free if n != "batch"], []]
        reasons: list[str] = []
        for names in attempts:
            fixed = {n: v for n, v in wanted.items() if n not in names}
            try:
                return self._over(names, fixed, wanted, reasons)
            except SymbolicError as e:
                reasons.append(f"not symbolic in {', '.join(names)}: {e}")
        raise SymbolicError("; ".join(reasons))  # pragma: no cover - the last attempt has nothing to disagree about

    def _over(self, free: list[str], fixed: Mapping[str, int], wanted: Mapping[str, int], reasons: list[str]) -> Graph:
        if not free:
            runs: list[tuple[Recording, dict[int, int]]] = [(self._record(fixed), {})]
            solver = DimSolver([fixed], [])
        else:
            points = choose_points(free, fixed, self._confirm(wanted))
            solver = DimSolver(points, free)
            runs = self._runs(points)
        metadata = self.metadata | {f"fixed.{n}": str(v) for n, v in fixed.items()}
        metadata |= {f"note.{i}": note for i, note in enumerate([*reasons, *sorted(runs[0][0].notes)])}
        symbols = {
            n: replace(s, minimum=self._minimum(n, fixed, wanted, runs)) for n, s in self.symbols.items() if n in free
        }
        self.progress(f"assembling {len(runs[0][0].ops)} operators")
        return merge(self.model.name.split("/")[-1], self.phase, symbols, runs, solver, metadata)

    def _confirm(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """The sizes of the confirming point: those wanted, so far as their integer tensors stay small."""
        lengths = wanted.get("seq", 1) + wanted.get("context", 0)
        return (
            dict(wanted) if wanted["batch"] * wanted.get("seq", 1) * lengths <= 1 << 27 else {"batch": wanted["batch"]}
        )

    def _minimum(
        self,
        name: str,
        fixed: Mapping[str, int],
        wanted: Mapping[str, int],
        runs: list[tuple[Recording, dict[int, int]]],
    ) -> int:
        """The least size the graph holds for: one often takes other operators, so it is tried or excluded."""
        if wanted[name] == 1 or name == "context":
            return 1
        if name == "batch":
            try:
                correspond(runs[0][0], self._record({**choose_points(list(self.symbols), fixed, {})[0], "batch": 1}))
                return 1
            except SymbolicError:
                pass
        return 2

    def _runs(self, points: "list[dict[str, int]]") -> list[tuple[Recording, dict[int, int]]]:
        full = self._record(points[0])
        plan = plan_cut(full, self.root)
        if plan is not None:
            try:
                with cut(self.root, dict(plan.lists)):
                    others = [self._record(p) for p in points[1:]]
                pairs = [correspond(full, other, plan.kept) for other in others]
                for pair in pairs:
                    pair.update({i: pair[twin] for i, twin in plan.stands_for.items() if twin in pair})
                return [(full, {}), *zip(others, pairs, strict=True)]
            except (SymbolicError, IndexError, KeyError, RuntimeError):
                pass  # the model does not run with layers left out: record it whole
        others = [self._record(p) for p in points[1:]]
        return [(full, {}), *((other, correspond(full, other)) for other in others)]

    def _record(self, point: Point) -> Recording:
        self.progress("recording at " + ", ".join(f"{n} {v}" for n, v in point.items()))
        step: Step = make_step(self.root, self.model.config, self.phase, point, "meta")
        return record(self.root, step.run, step.inputs)
