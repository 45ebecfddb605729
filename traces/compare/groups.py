"""What is compared as one: the connected groups of an alignment's pairs, so that no second counts twice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .align import Alignment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Matched rows by group; a row is in exactly one. One operator on a side may be several on the other."""

    predicted: Ints  #: shape (p,), matched rows, ascending
    predicted_group: Ints  #: shape (p,), in [0, n)
    measured: Ints  #: shape (m,), matched rows, ascending
    measured_group: Ints  #: shape (m,), in [0, n)
    predicted_s: Floats  #: shape (n,), seconds of the whole group
    measured_s: Floats  #: shape (n,)
    confidence: Floats  #: shape (n,), of the weakest pair
    share_s: Floats  #: shape (p,), the group's measured seconds divided as the predicted ones are
    head: Ints  #: shape (n,), the predicted row that stands for the group: the longest, of equals the first


def find_groups(alignment: Alignment) -> Groups:
    """The groups of *alignment*, in order of their first predicted row."""
    predicted, a = np.unique(alignment.pairs[:, 0], return_inverse=True)
    measured, b = np.unique(alignment.pairs[:, 1], return_inverse=True)
    label = np.arange(len(predicted))
    while len(label):
        reached = np.full(len(measured), len(label))
        np.minimum.at(reached, b, label[a])
        lower = label.copy()
        np.minimum.at(lower, a, reached[b])
        if np.array_equal(lower, label):
            break
        label = lower
    label = np.unique(label, return_inverse=True)[1]
    n = int(label.max(initial=-1)) + 1
    of_measured = np.zeros(len(measured), np.int64)
    of_measured[b] = label[a]
    own_s = alignment.predicted_seconds[predicted]
    predicted_s: Floats = np.bincount(label, own_s, minlength=n).astype(np.float64)
    measured_s: Floats = np.bincount(of_measured, alignment.measured_seconds[measured], minlength=n).astype(np.float64)
    confidence = np.ones(n)
    np.minimum.at(confidence, label[a], alignment.confidence)
    size = np.bincount(label, minlength=n)
    part = np.where(predicted_s[label] > 0, own_s / np.where(predicted_s > 0, predicted_s, 1.0)[label], 1 / size[label])
    order = np.lexsort((predicted, -own_s, label))
    first = np.searchsorted(label[order], np.arange(n))
    return Groups(
        predicted=predicted,
        predicted_group=label,
        measured=measured,
        measured_group=of_measured,
        predicted_s=predicted_s,
        measured_s=measured_s,
        confidence=confidence,
        share_s=part * measured_s[label],
        head=predicted[order[first]],
    )
