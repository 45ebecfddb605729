"""Rows that measure whole models, through capture and replay: forward and backward, generation, training steps.

Every row becomes `Cell`s, one for each time it measures; a row that cannot be replayed raises a `ForetraceError` that
says why. torch is imported when the first row needs a graph.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from foretrace.ir import ForetraceError, Graph
from foretrace.replay import Result, replay_graph
from foretrace.replay.costs import BOUNDS, CostModel
from foretrace.replay.measured import Table, Text

from .row_values import Captured, Cell, Row, Shape, Verdict, count, dtype_of, ms, number, size, true
from .training_rows import TrainingReplays, training_cells

if TYPE_CHECKING:
    from foretrace.hardware import System

SERVING: Final = "serving"
"""The execution that stands for a serving engine: fused kernels, as little host as there is."""


def _gpt3(layers: int, width: int, heads: int) -> dict[str, Any]:
    """GPT-3 of a size (arXiv:2005.14165, table 2.1), built as GPT-2; heads are such that they divide the width."""
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": 2048, "vocab_size": 50257}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32", **sizes}


MODELS: Final[Mapping[str, str | dict[str, Any]]] = {
    "bert_large": "google-bert/bert-large-uncased",
    "gpt2_large": "openai-community/gpt2-large",
    "opt_13": "facebook/opt-1.3b",
    "gpt3_xl": _gpt3(24, 2048, 16),
    "gpt3_27": _gpt3(32, 2560, 32),
    "llama_2-7b": "meta-llama/Llama-2-7b-hf",
    "llama_2-13b": "meta-llama/Llama-2-13b-hf",
    "llama_2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
}
"""Model by its name in tables, in lower case with ``_`` for spaces → a catalogue name, or a configuration. Other names
are looked up as `capture_graph` does."""


@dataclass
class Replays:
    """Graphs captured and steps replayed so far: each once."""

    costs: CostModel
    progress: Callable[[str], None] = lambda _: None
    training: TrainingReplays | None = None
    """Of training rows, once there is one."""
    _graphs: dict[Any, Graph | ForetraceError] = field(default_factory=dict)
    _results: dict[Any, Result] = field(default_factory=dict)

    def step(self, what: Captured, at: Shape, system: "System", execution: str) -> Result:
        """One step of *what* at a shape on *system*."""
        key = (what, at, system.name, execution)
        if key not in self._results:
            graph = self.graph(what, at)
            self._results[key] = replay_graph(
                graph,
                system,
                execution=execution,
                costs=self.costs,
                batch=at.batch,
                seq=at.seq,
                context=at.context,
            )
        return self._results[key]

    def graph(self, what: Captured, at: Shape) -> Graph:
        """The graph that `step` replays."""
        ones = tuple(size == 1 for size in at)  # a size of one is captured for itself
        if (what, ones) not in self._graphs:
            self.progress(f"capturing {what.model[:60]} {what.phase}")
            self._graphs[what, ones] = _captured(what, at)
        graph = self._graphs[what, ones]
        if isinstance(graph, ForetraceError):  # what failed once is not tried for each row
            raise graph
        return graph


def _captured(what: Captured, at: Shape) -> Graph | ForetraceError:
    from foretrace.capture import capture_graph

    try:
        with _described(what.model) as spec:
            return capture_graph(
                spec,
                phase=what.phase,
                batch=at.batch,
                seq=at.seq,
                context=at.context,
                dtype=what.dtype,
                attention=what.attention,
                optimizer=what.optimizer,
            )
    except ForetraceError as error:
        return error


class _described:  # noqa: N801 - used as a function is
    """What `capture_graph` takes for a table's model: a name, or a folder with the configuration while it is open."""

    def __init__(self, model: str) -> None:
        named = json.loads(model) if model.startswith("{") else model
        self.known: str | dict[str, Any] = MODELS.get(model.strip().lower().replace(" ", "_"), named)
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> str:
        if isinstance(self.known, str):
            return self.known
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name) / f"{self.known['model_type']}-of-given-sizes"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.known), encoding="utf-8")
        return str(folder)

    def __exit__(self, *exception: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()


# --- the sorts of rows -------------------------------------------------------------------------------------------


def _e2e(row: Row, system: "System", replays: Replays) -> Iterator[Cell | Verdict]:
    """Forward, or forward and backward without loss and optimizer, of a Hugging Face model."""
    option = str(row.get("option", ""))
    if option not in ("", "fusion"):
        raise ForetraceError(f"needs a plan: {option}")
    training = row.get("mode", "inf") == "train"
    if true(row.get("tf32")):
        raise ForetraceError("tf32 is on: matmuls in float32 are priced as float32")
    what = Captured(str(row["model"]), "train" if training else "forward", dtype_of(row), "eager")
    execution = "compiled" if option == "fusion" else "eager"
    result = replays.step(what, Shape(size(row, "batch"), size(row, "seq")), system, execution)
    low, high = result.time_low_s / result.time_s, result.time_high_s / result.time_s
    parts = {"e2e_forward": ("fw_ms", "forward"), "e2e_backward": ("bw_ms", "backward")}
    if not training:
        parts = {"e2e_forward": ("measured_ms" if "measured_ms" in row else "fw_ms", "forward")}
    for kind, (column, phase) in parts.items():
        predicted = result.phases_s[phase]
        yield Cell(kind, ms(row, column), predicted, predicted * low, predicted * high, _bound(result))


def _generation(row: Row, system: "System", replays: Replays) -> Iterator[Cell | Verdict]:
    """Prefill and decode steps of a batch, and the whole generation."""
    if count(row, "tp") > 1:
        raise ForetraceError(f"needs a plan: tp={count(row, 'tp')}")
    if "prefill_tokens" in row:  # of the whole batch, as is decode_tokens
        batch, new = size(row, "batch"), size(row, "output_len")
        seq = max(round(number(row, "prefill_tokens") / batch), 1)
        columns = {"infer_prefill": "prefill_ms", "infer_decode": "decode_ms", "infer_total": "total_ms"}
    else:
        batch, seq, new = size(row, "concurrency"), size(row, "input_tokens"), size(row, "output_tokens")
        columns = {"infer_prefill": "ttft_ms", "infer_decode": "itl_ms", "infer_total": "e2e_ms"}

    def step(phase: str, at: Shape) -> Result:
        return replays.step(Captured(str(row["model"]), phase, dtype_of(row), "sdpa"), at, system, SERVING)

    prefill = step("prefill", Shape(batch, seq))
    decode = step("decode", Shape(batch, context=seq + new // 2))
    steps = max(new - 1, 0)
    (first, first_low, first_high), (each, each_low, each_high) = _times(prefill), _times(decode)
    whole = first + steps * each, first_low + steps * each_low, first_high + steps * each_high
    times = {"infer_prefill": _times(prefill), "infer_decode": _times(decode), "infer_total": whole}
    for kind, column in columns.items():
        if (measured := ms(row, column, absent=0.0)) > 0:
            yield Cell(kind, measured, *times[kind], _bound(prefill if kind == "infer_prefill" else decode))


def _training(row: Row, system: "System", replays: Replays) -> Iterator[Cell | Verdict]:
    """A training step under its plan: its time, its memory, and whether it ran out of that."""
    if replays.training is None:
        replays.training = TrainingReplays(replays.costs, replays.graph)
    return training_cells(row, system, replays.training)


def _no_plan(row: Row, system: "System", replays: Replays) -> Iterator[Cell | Verdict]:
    raise ForetraceError("needs a plan: a serving configuration (batching, parallel engines) is not replayed yet")


class WholeClass(NamedTuple):
    """One sort of table of whole models."""

    name: str
    recognised_by: tuple[str, ...]
    needs: tuple[str, ...]
    cells: Callable[[Row, "System", Replays], Iterator[Cell | Verdict]]


CLASSES: Final = (
    WholeClass("serving_e2e", ("measured_ttft_ms", "measured_tpot_ms"), ("gpu",), _no_plan),
    WholeClass("e2e", ("model", "mode", "batch", "seq"), ("gpu",), _e2e),
    WholeClass("infer", ("model", "prefill_tokens", "output_len"), ("gpu", "batch"), _generation),
    WholeClass("infer", ("model", "input_tokens", "output_tokens"), ("gpu", "concurrency"), _generation),
    WholeClass("train", ("step_ms", "mbs", "seq"), ("gpu",), _training),
)


def whole_class(table: Table) -> WholeClass | None:
    """The sort of *table*, by its columns; None for one that measures no whole models."""
    return next((c for c in CLASSES if all(name in table for name in c.recognised_by)), None)


def rows_of(table: Table) -> Iterator[Row]:
    """The rows of *table* as mappings."""
    columns = {
        n: [c.values[i] for i in c.codes] if isinstance(c, Text) else c.tolist() for n, c in table.columns.items()
    }
    for i in range(table.rows):
        yield {name: values[i] for name, values in columns.items()}


# --- cells of a row ----------------------------------------------------------------------------------------------


def _times(result: Result) -> tuple[float, float, float]:
    return result.time_s, result.time_low_s, result.time_high_s


def _bound(result: Result) -> str:
    """What limits most of the kernels' time, or the host where the device waits longer for it."""
    priced, row = result.priced, result.table.row
    by_bound = np.bincount(priced.bound[row], priced.seconds[row], minlength=len(BOUNDS))
    host = result.breakdown_s["host"]
    return "host" if host > by_bound.max() else BOUNDS[int(by_bound.argmax())]
