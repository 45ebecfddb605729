"""From the intervals of operators to that of a step.

Errors of operators are correlated: where a chip's clock is off, all of them are. With a share c of the variance of
their log errors in common, a sum whose parts take shares w of it has the variance (c + (1 - c) · sum w²) of a single
part's: the step's interval is that power of the operators'. At c = 1 every operator is at its end at once.
"""

import numpy as np

from foretrace.replay.columns import Floats


def step_power(seconds: Floats, correlation: float) -> float:
    """The power of the operators' factors (high / seconds) that holds for the sum of *seconds* [r]."""
    total = float(seconds.sum())
    if not total:
        return 1.0
    shares = seconds / total
    return float(np.sqrt(correlation + (1 - correlation) * (shares * shares).sum()))


def narrowed(seconds: Floats, end: Floats, power: float) -> Floats:
    """[r] *seconds* · (*end* / *seconds*)^*power*: an end of each op's interval, in a step's."""
    ratio = np.divide(end, seconds, out=np.ones_like(seconds), where=seconds > 0)
    return np.asarray(seconds * ratio**power)
