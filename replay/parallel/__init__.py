"""The replay of a plan: pipeline stages, data parallel replicas and what they send, on the ranks that differ.

`entry` from a graph and a plan to a `Result` · `run` the steps of it · `prepared` what plans share: prices · `outline`
what follows from a graph alone · `cutting` what its stages run · `flow` who reads what · `shares` what each rank holds
· `pieces` a row of the pipeline schedule in stretches of ops · `extras` the ops that the plan adds · `segment` each
distinct stretch replayed once · `step` all of them as one schedule of the engine · `account` where the time goes ·
`memory` what each rank needs · `classes` which ranks are alike · `policy` what the plan leaves open · `answer` an
answer for each rank · `events` the predicted trace.
"""

from .answer import Parallel, RankResult
from .entry import answer_plan
from .memory import RankMemory
from .policy import MemoryPolicy, Overlap
from .prepared import Prepared, Shared, prepare
from .run import PlanRun, replay_plan

__all__ = [
    "MemoryPolicy",
    "Overlap",
    "Parallel",
    "PlanRun",
    "Prepared",
    "RankMemory",
    "RankResult",
    "Shared",
    "answer_plan",
    "prepare",
    "replay_plan",
]
