"""How strongly ridge regression holds weights back: the more, the fewer tokens there are for the features of a family.

Ridge regression is the best guess of weights that are drawn from a normal distribution, if its penalty is the variance
of the noise over the variance of a weight. Let features have unit size and the dual unit variance, N tokens, and let a
family of F features explain a share s of the dual, its weights alike: each has variance s / F. What no feature explains
is the noise, 1 - R². So, per token,

    penalty of a feature  =  (1 - R²) / s  F / N.

R² is about 0.9 on everything measured here (figures/choices), of which the larger families have about a third each:
(1 - R²) / s = 1/3. A family of many features is thus held back more than one of few, and with few tokens the map falls
back on slices and cumulants by itself. With many tokens a floor of 1e-3 is left, for what no number of tokens of one
kind can tell: how the dual changes with the length of a sequence. (derived; figures/choices/few_sequences.md)
"""

from __future__ import annotations

import numpy as np

FLOOR, SHARE = 1e-3, 1 / 3


def penalties(families, tokens):
    """Penalty of each feature, relative to its second moment: (F,), for families fitted on so many tokens.

    Examples
    --------
    >>> from asap_ref import Cumulants, Slices
    >>> penalties([Slices(np.eye(2)), Cumulants()], 100)
    array([0.00766667, 0.00766667, 0.011     , 0.011     , 0.011     ])
    """
    counts = [family.count for family in families]
    return np.repeat([FLOOR + SHARE * count / max(tokens, 1) for count in counts], counts)
