"""A module that torch.distributed has parallelised (DTensor, FSDP2, pipeline stages): the Graph of one of its ranks.

The user's function runs as it does on a cluster, in a world that is not there (`fake_world`): its floats are on meta
from the start, whatever device it asks for. Where it takes ``batch`` and ``seq`` the graph leaves them open: it is
built and recorded at several points, multiples of what the ranks divide them by.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, lcm
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from foretrace.ir import Dim, DimLike, ForetraceError, Graph, Symbol, symbol

from .build import merge
from .fake_world import World, fake_world, know_fsdp
from .models import UserModel, find_function, user_model
from .pairing import correspond
from .phases import Step
from .points import choose_points
from .rank_recorder import RankRecorder
from .recorder import Recording, _Silent, on_meta, record
from .symbolic import DimSolver, SymbolicError
from .training import TrainingRecorder
from .user import user_step

OPEN = ("batch", "seq")
"""Sizes that a graph leaves open where the function takes them."""


def capture_distributed(
    model: "str | Callable[..., Any]",
    *,
    world_size: int,
    rank: int = 0,
    phase: str = "forward",
    optimizer: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Graph:
    """The Graph of one step of *rank*: local operators, and the collectives between ranks as ops of their own.

    *model* is ``package.module:function``, or that function: called in a world of *world_size* ranks it gives
    ``(module, example_inputs)`` or ``(module, example_inputs, step)``, the module parallelised. It is given *sizes* by
    name; ``batch`` and ``seq`` are open in the graph where it takes them, every other size is fixed. The first step is
    not recorded: FSDP2 learns in it what it prefetches later.
    Raises `ForetraceError` with the program's own error where it fails.
    """
    name = model if isinstance(model, str) else _name_of(model)
    if isinstance(model, str) and ":" not in model:
        raise ForetraceError(f"{name}: --world-size takes package.module:function, whose module is parallelised")
    function = find_function(model) if isinstance(model, str) else model
    program = _Program(name, function, world_size, rank, phase, optimizer)
    given = program.defaults() | dict(sizes or {})
    full, metadata = program.record(given)
    wanted = {n: given[n] for n in OPEN if isinstance(given.get(n), int)}
    reasons: list[str] = []
    for free in dict.fromkeys((tuple(wanted), *((n,) for n in wanted))):
        for unit in _units(full, {n: wanted[n] for n in free}) if free else ():
            try:
                return _over(program, given, unit, full, metadata, reasons)
            except SymbolicError as e:
                reasons.append(f"not symbolic in {', '.join(free)}: {e}")
    notes = {f"note.open{i}": reason for i, reason in enumerate(dict.fromkeys(reasons))}
    fixed = {f"fixed.{n}": str(v) for n, v in wanted.items()}
    return merge(name, phase, {}, [(full, {})], DimSolver([{}], []), metadata | fixed | notes)


@dataclass(frozen=True)
class _Program:
    """A user's function, and where and how it is run."""

    name: str
    function: Callable[..., Any]
    world_size: int
    rank: int
    phase: str
    optimizer: str | None

    def defaults(self) -> dict[str, int]:
        """The open sizes that the function takes, with their defaults."""
        parameters = inspect.signature(self.function).parameters
        return {n: parameters[n].default for n in OPEN if n in parameters and type(parameters[n].default) is int}

    def record(self, sizes: Mapping[str, int], with_optimizer: bool = True) -> tuple[Recording, dict[str, str]]:
        """One step of the program built with *sizes*, and what the graph's metadata says of it."""
        takes = inspect.signature(self.function).parameters
        if unknown := [n for n in sizes if n not in takes]:
            raise ForetraceError(
                f"{unknown[0]}={sizes[unknown[0]]}: {self.name} takes {', '.join(takes) or 'no sizes'}; with "
                "--world-size the function says its sizes and dtype: give it that parameter, or change it there"
            )
        with fake_world(self.world_size, self.rank) as world:
            with _Silent():
                built = user_model(self.name, partial(self.function, **sizes))
            try:
                step, recording = _record(world, built, self.phase, self.optimizer if with_optimizer else None)
            except ForetraceError:
                raise
            except Exception as e:  # the user's code: any error is theirs to see
                what = "forward" if self.phase == "forward" else "training step"
                where = f"its {what} failed on rank {self.rank}"
                raise ForetraceError(f"{self.name}: {where}: {type(e).__name__}: {e}") from e
            metadata = {"source": self.name, "recorder": "dispatcher", **world.describe()}
        metadata |= {"torch": torch.__version__.split("+")[0]}
        metadata |= {} if self.optimizer is None else {"optimizer": self.optimizer}
        return recording, metadata | {
            f"note.{i}": note for i, note in enumerate([*step.notes, *sorted(recording.notes)])
        }


def _units(full: Recording, wanted: Mapping[str, int]) -> list[dict[str, int]]:
    """What sizes are multiples of: lengths of what ranks divide them by, batches of one, or of the wanted batch."""
    split = 2 * lcm(*(op.literals["ranks"] for op in full.ops if "ranks" in op.literals))
    fine = {n: 1 if n == "batch" else gcd(split, size) for n, size in wanted.items()}
    whole = fine | ({"batch": wanted["batch"]} if "batch" in wanted else {})
    return [fine] if fine == whole else [fine, whole]


def _over(
    program: _Program,
    given: Mapping[str, int],
    unit: Mapping[str, int],
    full: Recording,
    metadata: Mapping[str, str],
    reasons: Sequence[str],
) -> Graph:
    """The graph over the symbols of *unit*, each size a multiple of it; *full* was recorded at *given*."""
    counts = {n: given[n] // u for n, u in unit.items()}
    points = [p for p in choose_points(list(unit), {}, {}) if p != counts]
    points += [{n: 2 * p[n] + 9 for n in p} for p in points[:1]]
    alone = given.get("batch") == 1  # a batch of one skips copies: it does not say what the others do
    points = [*points, counts] if alone else [counts, *points]
    runs: list[tuple[Recording, dict[int, int]]] = []
    for n, point in enumerate(points):
        sizes = {**given, **{name: point[name] * u for name, u in unit.items()}}
        try:
            run = full if point is counts else program.record(sizes, with_optimizer=n == 0)[0]
        except ForetraceError as e:
            raise SymbolicError(f"the program fails at {sizes}: {e}") from e
        if n:
            run = replace(run, ops=[op for op in run.ops if op.phase != "optimizer"])
        runs.append((run, correspond(runs[0][0], run) if n else {}))
    solver = _Multiples(points, unit)
    least = {n: min(p[n] for p in points) * u for n, u in unit.items()}
    symbols = {n: Symbol(n, given[n], least[n], None, f"a multiple of {u}") for n, u in unit.items()}
    fixed = {f"fixed.{n}": str(v) for n, v in given.items() if n not in unit}
    notes = {f"note.open{i}": reason for i, reason in enumerate(reasons)}
    notes |= {
        f"note.multiple.{n}": f"{n} is taken to be a multiple of {u}: ranks divide it" for n, u in unit.items() if u > 1
    }
    return merge(program.name, program.phase, symbols, runs, solver, {**metadata, **fixed, **notes})


class _Multiples(DimSolver):
    """Solves over how often each symbol holds its unit, and says it over the symbol itself: ``seq // 8``."""

    def __init__(self, points: Sequence[Mapping[str, int]], unit: Mapping[str, int]) -> None:
        super().__init__(points, list(unit))
        self.unit = unit

    def solve(self, seen: tuple[int | None, ...]) -> DimLike:
        """As `DimSolver.solve`."""
        found = super().solve(seen)
        return found if isinstance(found, int) else sum((self._term(m, c) for m, c in found.terms), 0)

    def _term(self, monomial: tuple[Any, ...], coefficient: int) -> DimLike:
        """``coefficient × counts``: what is left of a unit divides its symbol."""
        term: DimLike = 1
        for atom in monomial:
            if not isinstance(atom, str):
                raise SymbolicError(f"{Dim(((monomial, coefficient),))} is no multiple of what ranks divide it by")
            shared = gcd(coefficient, self.unit[atom])
            coefficient //= shared
            rest = self.unit[atom] // shared
            term = term * (symbol(atom) if rest == 1 else symbol(atom) // rest)
        return term * coefficient


def _name_of(function: Any) -> str:
    """What a function is called, of a partial the function within."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__name__))


def capture_rank(
    model: Any,
    world_size: int | None,
    rank: int | None,
    sizes: Mapping[str, int],
    dtype: str | None,
    phase: str,
    optimizer: str | None,
) -> Graph:
    """`capture_distributed` for `capture_graph`.

    Raises `ForetraceError` where the arguments do not go together.
    """
    if world_size is None:
        raise ForetraceError("a parallelised module needs the size of its world: give --world-size (world_size=)")
    if not isinstance(model, str) and not callable(model):
        raise ForetraceError(
            f"--world-size {world_size}: the model is built inside that world: give a function or "
            f"package.module:function, got {type(model).__name__}"
        )
    if dtype is not None:
        raise ForetraceError(f"--dtype {dtype}: with --world-size the function says its dtype; change it there")
    return capture_distributed(
        model, world_size=world_size, rank=rank or 0, phase=phase, optimizer=optimizer, sizes=sizes
    )


def _reduce_in_sight(_: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DistributedDataParallel does to a bucket of gradients, as operators (its own code does it in C++)."""
    tensor: torch.Tensor = bucket.buffer()
    tensor.div_(dist.get_world_size())
    dist.all_reduce(tensor)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(tensor)
    return done


def _record(world: World, model: UserModel, phase: str, optimizer: str | None) -> tuple[Step, Recording]:
    replicas = [m for m in model.module.modules() if isinstance(m, DistributedDataParallel)]
    for module in replicas:
        module.register_comm_hook(None, _reduce_in_sight)
    root, step = user_step(model, phase, "meta", optimizer)
    settled = model.step is not None and phase == "train"  # it ran once for the optimizer's sake
    for _ in range(2 * bool(replicas) + (not settled)):  # DistributedDataParallel makes its buckets anew in the second
        with on_meta(root, TrainingRecorder()):
            step.run()  # memory is set up, the order of the layers learned
    recorder = world.recorder = RankRecorder(root, world.groups)
    know_fsdp(world, root, recorder)
    try:
        return step, record(root, step.run, step.inputs, recorder)
    finally:
        world.recorder = None
