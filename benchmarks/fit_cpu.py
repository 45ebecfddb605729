"""Fit how a BLAS drives a CPU, on the operator tables that we recorded on CPUs (``traces/recorded``).

    python benchmarks/fit_cpu.py

No ground-truth table has rows of a CPU, so these are all there are: of one class of CPU, each operator timed by itself
(`foretrace measure --ops`). The recorded steps are not fitted on. A set that is fitted is written into the profile
``serving``, which every other stands on.
"""

from collections.abc import Iterator
from pathlib import Path

import fit_profiles
import numpy as np

from foretrace.hardware import load_system
from foretrace.replay.calibration import Errors, Free, Sample, fit
from foretrace.replay.costs.physics.packed import PIPELINE
from foretrace.replay.costs.physics.profile import Profile, load_profile
from foretrace.replay.measured import read_measurements

FOLDER = Path(__file__).resolve().parents[1] / "traces" / "recorded"
FITTED = ("xeon-2-cores",)
"""The recordings that are fitted on; what else was recorded on CPUs is held out."""
CONSTANTS = {
    "packed": ("gemm", "efficiency idle_rows memory_efficiency packing start_s"),
    "prefill": ("attention_prefill attention_encoder", "efficiency exp_efficiency start_s"),
    "decode": ("attention_decode", "memory_efficiency start_s"),
    "stream": ("elementwise norm softmax", "memory_efficiency start_s vector_efficiency"),
}
"""Class → the kinds of row that it is fitted on, the constants that move."""


def main() -> None:
    """Fit each class, write its set, print its errors."""
    for kernels, (kinds, constants) in CONSTANTS.items():
        samples = list(_samples(set(kinds.split())))
        fitted = fit(load_profile("serving"), samples, [Free(kernels, PIPELINE, tuple(constants.split()))])
        names = sorted({s.system.name for s in samples})
        said = "; ".join(f"{name}: {_error(fitted, [s for s in samples if s.system.name == name])}" for name in names)
        chips = {s.system.accelerator.name: s.system.accelerator.generation for s in samples}
        note = {"on": chips, "errors": {f"traces/recorded *.ops.parquet {kinds}, benchmarks/fit_cpu.py": said}}
        fit_profiles.write_set("serving", kernels, PIPELINE, fitted, note)
        print(f"{kernels}: {said}")


def _error(profile: Profile, samples: list[Sample]) -> str:
    predicted, measured = (
        np.concatenate(x) for x in ([s.predict(profile) for s in samples], [s.seconds for s in samples])
    )
    e = Errors.of(predicted, measured)
    return f"n={e.n} MAPE={e.mape:.1%} median={e.median:.1%} bias={e.bias:.3f}"


def _samples(kinds: set[str]) -> Iterator[Sample]:
    """Rows of some kinds, a sample for each table."""
    for place in (FOLDER / name for name in FITTED):
        for table in sorted(place.glob("*.ops.parquet")):
            for q in read_measurements(table):
                found = q.take(q.kind.is_in(kinds))
                if len(found.seconds):
                    yield Sample(found.operators, found.row, found.seconds, load_system(place / "system.yaml"))


if __name__ == "__main__":
    main()
