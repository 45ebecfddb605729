"""Which ranks are alike: replicas of the pipeline whose stages run at the same speeds are simulated once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foretrace.transforms.plan import PlanError

if TYPE_CHECKING:
    from foretrace.transforms.plan import Plan


@dataclass(frozen=True)
class Replicas:
    """Classes of data parallel replicas."""

    speeds: tuple[tuple[float, ...], ...]
    """[classes][pp] relative speed of each stage's ranks."""
    links: tuple[tuple[float, ...], ...]
    """[classes][pp] relative bandwidth of their links."""
    of_replica: tuple[int, ...]
    """[dp] the class of each data parallel replica, where there is more than one class; else empty."""

    @property
    def count(self) -> int:
        """How many classes."""
        return len(self.speeds)

    def simulated(self, place: Mapping[str, int], pp: int) -> int:
        """The simulated rank that stands for the one at *place*."""
        return (self.of_replica[place["dp"]] if self.of_replica else 0) * pp + place["pp"]

    def sizes(self, dp: int) -> list[int]:
        """[classes] how many replicas each has."""
        if not self.of_replica:
            return [dp]
        return [self.of_replica.count(c) for c in range(self.count)]


def find_classes(plan: "Plan", speeds: Mapping[int, float], links: Mapping[int, float]) -> Replicas:
    """The classes of replicas under *speeds* (rank → relative speed) and *links* (rank → relative bandwidth).

    Others are at 1. Ranks of one tensor and context parallel group wait for each other at every layer, and so do
    those of one expert parallel group: a group is as its slowest. Raises `PlanError` for a rank that is not there,
    or a factor of 0.
    """
    slow, narrow = _groups(plan, speeds, "speeds"), _groups(plan, links, "links")
    if not slow and not narrow:
        return Replicas(((1.0,) * plan.pp,), ((1.0,) * plan.pp,), ())
    even = (1.0,) * plan.pp
    touched = {replica for replica, _ in (*slow, *narrow)}
    known: dict[tuple[tuple[float, ...], ...], int] = {}
    of_replica = []
    for replica in range(plan.dp):
        pair = (even, even)
        if replica in touched:
            first, second = (tuple(f.get((replica, p), 1.0) for p in range(plan.pp)) for f in (slow, narrow))
            pair = (first, second)
        of_replica.append(known.setdefault(pair, len(known)))
    return Replicas(tuple(s for s, _ in known), tuple(n for _, n in known), tuple(of_replica))


def _groups(plan: "Plan", factors: Mapping[int, float], what: str) -> dict[tuple[int, int], float]:
    """(replica, pipeline rank) → the factor of its slowest member, where that is not 1."""
    found: dict[tuple[int, int], float] = {}
    peers = max(plan.ep // plan.cp, 1)  # data parallel replicas that share experts
    single = plan.tp * plan.cp == 1 and peers == 1
    for rank, factor in factors.items():
        if not 0 <= rank < plan.ranks or not factor > 0:
            raise PlanError(f"{what}: rank {rank}: {factor:g}: expected a rank below {plan.ranks} and a factor above 0")
        place = plan.place(rank)
        begin = place["dp"] // peers * peers
        for replica in range(begin, begin + peers):
            key = (replica, place["pp"])
            found[key] = factor if single else min(found.get(key, 1.0), factor)
    return {key: factor for key, factor in found.items() if factor != 1.0}
