"""`capture_graph`: from a model's name (or the model itself) to a verified Graph."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foretrace.ir import ForetraceError, Graph, Symbol, UnknownNameError, parse_dtype

from .build import agrees, merge, mixes_sequences
from .families import position_limits
from .loops import roll
from .models import PretrainedModel, UserModel, resolve_model
from .pairing import correspond
from .phases import Step, check_phase, make_step, symbols_of
from .points import Point, config_steps, surveys
from .recorder import Recording, record_settled
from .rejoin import rejoin
from .rungs import Rung, climb, refuse, rungs
from .shipped_plans import shipped_plans
from .shorten import Cut, cut, plan_cut
from .symbolic import DimSolver, SymbolicError
from .training import check_optimizer, record_training, set_to_train, train_step

ATTENTIONS = ("sdpa", "eager", "absorbed")
PLAIN_BATCH = 2
"""The default of a model that runs other operators for a batch of one than for more, where nobody asks for one."""
Progress = Callable[[str], None]
Runs = list[tuple[Recording, dict[int, int]]]
"""Recordings, the full one first, each with the ops that stand for the full one's."""


def capture_graph(
    model: "str | PretrainedModel | UserModel | Callable[[], Any]",
    *,
    phase: str = "forward",
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    optimizer: str | None = None,
    dims: Mapping[str, int] | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    progress: Progress = lambda _: None,
) -> Graph:
    """Capture one phase of *model* on the meta device: no weights, no accelerator.

    The graph leaves batch, seq (and context, in decode) open; *batch*, *seq* and *context* become their defaults and
    one of the points it is verified at. *dtype* is the model's own where not given. Phase train is forward, loss and
    backward, and one step of *optimizer* (`training.OPTIMIZERS`) where that is given. *dims* are
    further sizes by name: an image's height and width, a decoder's target, an ``.onnx`` file's own. *progress* is told
    each stage. With *world_size* the model is a function (or ``package.module:function``) whose module
    torch.distributed has parallelised, and the graph that of *rank* (`distributed.capture_distributed`).
    Raises `ForetraceError` for what cannot be captured, naming the cause.
    """
    sizes = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None}
    if isinstance(model, str) and model.endswith(".onnx"):
        from .onnx import capture_onnx

        return capture_onnx(model, dims=sizes | dict(dims or {}), phase=phase, dtype=dtype, attention=attention)
    check_phase(phase)
    check_optimizer(optimizer, phase)
    if attention not in ATTENTIONS:
        raise UnknownNameError("attention", attention, ATTENTIONS)
    if world_size is not None or rank is not None or not isinstance(model, str | PretrainedModel | UserModel):
        from .distributed import capture_rank

        return capture_rank(model, world_size, rank, sizes | dict(dims or {}), dtype, phase, optimizer)
    if isinstance(model, str) and model.endswith(".pt2"):
        return _from_program(model, phase, sizes | dict(dims or {}))
    if isinstance(model, str):
        progress(f"finding {model}")
        model = resolve_model(model)
    if isinstance(model, UserModel):
        from .user import capture_user_model, refuse_flags

        named = {f"dim {n}": v for n, v in (dims or {}).items()}
        refuse_flags(model, batch=batch, seq=seq, context=context, dtype=dtype, **named)
        return capture_user_model(model, phase, optimizer)

    given = sizes | dict(dims or {})

    def attempt(model: PretrainedModel, rung: Rung) -> Graph:
        return _Capture(model, phase, given, rung.dtype or dtype, rung.attention, optimizer, progress).graph()

    try:
        return climb(model.name, rungs(attention), partial(attempt, model))
    except ForetraceError as e:
        alone = model.without_images()
        if alone is None or given.keys() & set(model.family.pinned):
            raise
        try:
            graph = climb(model.name, rungs(attention), partial(attempt, alone))
        except ForetraceError:
            raise e from None
        return replace(graph, metadata={**graph.metadata, "note.images": f"text alone, no image: {e}"})


def _from_program(path: str, phase: str, given: Mapping[str, int]) -> Graph:
    from .fx import graph_from_fx
    from .pt2 import load_program

    if phase != "forward":
        raise ForetraceError(f"{path}: a program holds one forward, got --phase {phase}")
    if given:
        raise ForetraceError(f"{path}: a program keeps the sizes it was exported with, got {', '.join(given)}")
    return graph_from_fx(load_program(path), name=Path(path).stem)


class _Capture:
    """One capture of one pretrained model: tries the most open set of symbols first, then fewer."""

    def __init__(
        self,
        model: PretrainedModel,
        phase: str,
        given: Mapping[str, int],
        dtype: str | None,
        attention: str,
        optimizer: str | None,
        progress: Progress,
    ) -> None:
        self.model, self.phase, self.optimizer, self.progress = model, phase, optimizer, progress
        check_phase(phase, model.family)
        progress(f"building {model.name} on meta")
        self.dtype = parse_dtype(dtype or model.dtype).name
        self.root = model.build(self.dtype, attention)
        refuse(self.root, attention, phase)
        self.notes = set_to_train(self.root.requires_grad_(True)) if phase == "train" else []
        self._recorded: dict[Any, Recording] = {}
        limits = position_limits(self.root, model.family)
        self.symbols = symbols_of(phase, given, model.family, model.config, limits)
        self.any_batch = "batch" not in given
        self.metadata = {
            "source": model.name,
            "dtype": self.dtype,
            "attention": attention,
            "recorder": "dispatcher",
            "torch": torch.__version__.split("+")[0],
        } | ({} if optimizer is None else {"optimizer": optimizer})
        self.metadata |= shipped_plans(self.root)

    def graph(self) -> Graph:
        """The graph over as many symbols as the model leaves open at the wanted sizes."""
        wanted = {n: s.default for n, s in self.symbols.items()}
        family = self.model.family
        free = [n for n in self.symbols if n not in family.pinned]
        if self.phase == "decode" and wanted[family.cached] == 1:
            free.remove(family.cached)
        asked = wanted["batch"]
        attempts = [(free, asked), ([n for n in free if n != "batch"], asked), ([], asked)]
        if self.any_batch and asked == 1:
            attempts.insert(1, (free, PLAIN_BATCH))
        reasons: list[str] = []
        for names, batch in attempts:
            at = wanted | {"batch": batch}
            fixed = {n: v for n, v in at.items() if n not in names}
            try:
                graph = self._over(names, fixed, at, reasons)
                if batch != asked and self.phase == "decode" and mixes_sequences(graph):
                    raise SymbolicError("the model mixes the sequences of a batch")
                return graph
            except SymbolicError as e:
                reasons.append(f"not symbolic in {', '.join(names)} with a batch of {batch}: {e}")
        raise SymbolicError("; ".join(reasons))  # pragma: no cover - the last attempt has nothing to disagree about

    def _over(self, free: list[str], fixed: Mapping[str, int], wanted: Mapping[str, int], reasons: list[str]) -> Graph:
        """The graph over *free* symbols, from the widest survey of sizes that one structure answers."""
        if not free:
            return self._assemble(
                [(self._record(fixed, self.optimizer), {})], DimSolver([fixed], []), fixed, {}, reasons
            )
        limits = {n: s.maximum for n, s in self.symbols.items()}
        steps = config_steps(self.model.config)
        failed: list[SymbolicError] = []
        for survey in surveys(free, fixed, self._confirm(wanted), limits, steps):
            symbols = {
                n: replace(s, default=wanted[n], minimum=survey.minimum[n], maximum=survey.maximum.get(n))
                for n, s in self.symbols.items()
                if n in free
            }
            try:
                runs = self._runs(survey.points)
                solver = DimSolver(survey.points, free, steps)
                graph = self._assemble(runs, solver, fixed, symbols, reasons)
            except SymbolicError as e:
                failed.append(e)
                continue
            return self._with_batch_of_one(graph, runs, solver, fixed, reasons)
        raise failed[0]

    def _assemble(
        self,
        runs: Runs,
        solver: DimSolver,
        fixed: Mapping[str, int],
        symbols: Mapping[str, Symbol],
        reasons: list[str],
    ) -> Graph:
        metadata = self.metadata | {f"fixed.{n}": str(v) for n, v in fixed.items()}
        metadata |= {f"note.{i}": note for i, note in enumerate([*reasons, *self.notes, *sorted(runs[0][0].notes)])}
        self.progress(f"assembling {len(runs[0][0].ops)} operators")
        return merge(self.model.name.split("/")[-1], self.phase, symbols, runs, solver, metadata)

    def _confirm(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """The wanted sizes, so far as their integer tensors stay small; else lengths that do."""
        lengths = [v for n, v in wanted.items() if n != "batch" and n not in self.model.family.pinned]
        if wanted["batch"] * max(lengths, default=1) * sum(lengths) <= 1 << 27:
            return dict(wanted)
        return {n: v if n == "batch" or n in self.model.family.pinned else min(v, 2048) for n, v in wanted.items()}

    def _with_batch_of_one(
        self, graph: Graph, runs: Runs, solver: DimSolver, fixed: Mapping[str, int], reasons: list[str]
    ) -> Graph:
        """*graph*, for a batch of one too where that takes the same operators; often it does not."""
        batch = graph.symbols.get("batch")
        if batch is None or batch.minimum == 1:
            return graph
        plan, alone = self._plan, self._first | {"batch": 1}
        symbols = {**graph.symbols, "batch": replace(batch, minimum=1)}
        try:
            with cut(self.root, dict(plan.lists)) if plan else nullcontext():
                one = self._once(alone, plan is not None)
            full = runs[0][0]
            keep = plan.kept if plan else None
            if agrees(graph, full, one, alone, correspond(full, one, keep), keep):
                return replace(graph, symbols=symbols)
            solver = DimSolver([*solver.points, alone], solver.free, solver.steps)
            return self._assemble([*runs, (one, self._pair(full, one))], solver, fixed, symbols, reasons)
        except SymbolicError:
            return graph

    def _runs(self, points: "list[dict[str, int]]") -> Runs:
        self._first = points[0]
        full = self._once(points[0], False, self.optimizer)
        plan = self._plan = plan_cut(full, self.root)
        if plan is not None:
            try:
                runs: Runs = [(full, {})]
                with cut(self.root, dict(plan.lists)):
                    for point in points[1:]:
                        other = self._once(point, True)
                        runs.append((other, self._pair(full, other)))
                return runs
            except Exception:  # whatever the model raises that misses a layer
                if self._shortens(full, plan):
                    raise
                self._plan = None  # the model does not run with layers left out: record it whole
        return [(full, {}), *((other := self._once(p, False), correspond(full, other)) for p in points[1:])]

    def _pair(self, full: Recording, other: Recording) -> dict[int, int]:
        """The correspondence of *full* to *other*, recorded with layers left out where there is a plan for that."""
        if (plan := self._plan) is None:
            return correspond(full, other)
        pair = correspond(full, other, plan.kept)
        return pair | {i: pair[twin] for i, twin in plan.stands_for.items() if twin in pair}

    def _shortens(self, full: Recording, plan: Cut) -> bool:
        """Whether the model runs with layers left out as it does whole, at the first point."""
        try:
            with cut(self.root, dict(plan.lists)):
                correspond(full, self._once(self._first, True), plan.kept)
        except Exception:
            return False
        return True

    def _once(self, point: Point, shortened: bool, optimizer: str | None = None) -> Recording:
        """The recording at *point*; surveys share those they have in common. One with the optimizer's step is enough:
        its sizes are the parameters'."""
        key = (shortened, optimizer, tuple(point.items()))
        if key not in self._recorded:
            try:
                self._recorded[key] = self._record(point, optimizer)
            except Exception as e:
                if not self._recorded:
                    raise  # it never ran: the caller's to explain
                sizes = ", ".join(f"{n}={v}" for n, v in point.items())
                raise SymbolicError(f"the model fails at {sizes}: {type(e).__name__}: {e}") from e
        return self._recorded[key]

    def _record(self, point: Point, optimizer: str | None = None) -> Recording:
        self.progress("recording at " + ", ".join(f"{n} {v}" for n, v in point.items()))
        step: Step = make_step(self.root, self.model.config, self.phase, point, "meta", self.model.family)
        if self.phase == "train":
            recording = record_training(self.root, train_step(self.root, step, optimizer))
        else:
            recording = record_settled(self.root, step.run, step.inputs)
        return roll(rejoin(recording), point["batch"])
