"""Exact start times of a small MLP in every execution mode, and what waits for what."""

import numpy as np
import pytest

from foretrace.ir import ForetraceError, Graph, OpKind, Role, UnknownNameError
from foretrace.replay import Result, replay_graph
from foretrace.replay.engine import TICKS_PER_SECOND
from foretrace.replay.lower import GUARD_PER_MODULE_S, GUARD_S, VIEW_DISPATCH_SHARE

from .models import BATCH, Builder, mlp, system

US = TICKS_PER_SECOND // 10**6


def test_it() -> None:
    assert replay_graph(mlp(), system()).time_s > 0
