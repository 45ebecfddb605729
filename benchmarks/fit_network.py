"""Fit how NCCL drives the links between nodes, on the ``calib`` folder of the ground-truth tables.

    FORETRACE_GROUNDTRUTH=... python benchmarks/fit_network.py

Three clusters say something of it: two that measured collectives over two nodes, one that measured the all-reduce of
whole training jobs on two and four. Each collective of a cluster is a sample; all weigh the same. One set is written
for chips of any generation, as the network is not the chip's. ``valid`` is never read.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fit_profiles
import numpy as np
import pyarrow.parquet as pq

from foretrace.hardware import System, load_system
from foretrace.replay.calibration import Errors, Free, Sample, fit
from foretrace.replay.costs.physics.collective import Protocol
from foretrace.replay.costs.physics.profile import GENERIC, Profile, load_profile
from foretrace.replay.measured import collective, read_measurements

START = {
    "low_latency": Protocol(6.6e-6, 0.9, 0.21),
    "simple": Protocol(8.4e-6, 4.7, 0.8),
    "direct": Protocol(14e-6, 1.0, 0.8),
    "tree": Protocol(8.4e-6, 4.7, 0.74),
}
"""NCCL's tuning.cc: latencies of a step between nodes are 2.7 us (LL) and 14 us (simple), of which ours count 3 us.
Latencies stay: two nodes say too little of a step. LL's efficiency is a half of simple's, as half of it is flags."""

FITTED = ("simple", "direct", "tree")
"""Those whose efficiency moves."""

NICS = {"a100_dgx": 12.5e9}
"""bytes/s of an accelerator's share in clusters that do not have what the library's system of that name has. An
estimate: sends reach 8 GB/s there, a third of what DGX A100's NICs carry, and two thirds of a 100 Gb/s NIC's."""

PUBLISHED = {"on": {}, "errors": {"NCCL's tuning.cc, efficiency half of simple's": "not fitted"}}

JOB_BYTES = 2.0**30
"""bytes of the all-reduce that a training job's bandwidth was measured with. Not said; in one node it reaches what only
large buffers do."""


def main() -> None:
    """Fit, write the sets into the profile ``serving``, print the errors of each cluster."""
    if not (folder := os.environ.get("FORETRACE_GROUNDTRUTH")):
        sys.exit("FORETRACE_GROUNDTRUTH: set it to the folder of the ground-truth tables")
    calib = Path(folder) / "calib"
    samples = {**dict(_rows(calib / "collectives.parquet")), **dict(_jobs(calib / "train_sweeps.parquet"))}
    profile = load_profile("serving")
    sets = {(f"scale-out_{name}", GENERIC): start for name, start in START.items()}
    free = [Free(f"scale-out_{name}", GENERIC, ("efficiency",)) for name in FITTED]
    fitted = fit(replace(profile, sets={**profile.sets, **sets}), list(samples.values()), free, prior=0.5)
    errors = [f"{name}: {_error(fitted, sample)}" for name, sample in samples.items()]
    said = {
        "on": {s.system.name: s.system.accelerator.generation for s in samples.values()},
        "errors": {"collectives.parquet of two nodes, train_sweeps.parquet nccl_ar_gbs": "; ".join(errors)},
    }
    for name in START:
        kernels = f"scale-out_{name}"
        fit_profiles.write_set("serving", kernels, GENERIC, fitted, said if name in FITTED else PUBLISHED)
        print(kernels, fitted.sets[kernels, GENERIC])
    print(*errors, sep="\n")


def _error(profile: Profile, sample: Sample) -> str:
    e = Errors.of(sample.predict(profile), sample.seconds)
    return f"n={e.n} MAPE={e.mape:.1%} median={e.median:.1%} bias={e.bias:.3f}"


def _rows(table: Path) -> Iterator[tuple[str, Sample]]:
    """The measured collectives that cross nodes, by cluster and collective."""
    for whole in read_measurements(table):
        for gpu, variant, _, rows in whole.split():
            q = whole.take(rows)
            for kind in ("all_reduce_across_nodes", "send_recv_across_nodes"):
                if (use := q.kind.is_in({kind})).any():
                    part = q.take(use)
                    yield f"{kind} {variant}", Sample(part.operators, part.row, part.seconds, _cluster(gpu, variant))


def _cluster(gpu: str, interconnect: str) -> System:
    """A system of *gpu* with the NICs of the cluster that a table calls *interconnect*."""
    system = load_system(gpu)
    assert system.network.scale_out is not None
    far = system.network.scale_out.model_copy(
        update={"bandwidth": NICS.get(interconnect, system.network.scale_out.bandwidth)}
    )
    return system.model_copy(update={"network": system.network.model_copy(update={"scale_out": far})})


def _jobs(table: Path) -> Iterator[tuple[str, Sample]]:
    """What training jobs on several nodes measured of all their ranks' all-reduce: n / 2 (n - 1) of bytes a second."""
    names = ["gpu", "n_gpus", "nodes", "nccl_ar_gbs"]
    columns = pq.read_table(table, columns=names).to_pydict()
    found: dict[tuple[str, int, int], list[float]] = {}
    for gpu, ranks, nodes, rate in zip(*(columns[name] for name in names), strict=True):
        if rate is not None and np.isfinite(rate) and nodes > 1:
            seconds = JOB_BYTES * 2 * (ranks - 1) / ranks / (rate * 1e9)
            found.setdefault((gpu, int(ranks), int(nodes)), []).append(seconds)
    for (gpu, ranks, nodes), seconds in found.items():
        one = collective("all_reduce", JOB_BYTES, ranks, nodes, "bf16")
        operators = one.take(np.zeros(len(seconds), np.int64))
        yield f"jobs of {nodes} nodes", Sample(operators, np.arange(len(seconds)), np.array(seconds), load_system(gpu))


if __name__ == "__main__":
    main()
