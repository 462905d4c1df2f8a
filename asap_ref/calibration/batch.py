"""What calibration asks of one batch: the sums from which its weights are solved for.

A batch is (q, k) or (q, k, query_mask, key_mask), of any array module. What comes out is small, and NumPy.
"""

from __future__ import annotations

from asap_ref.calibration.kl import fast_kl_statistics
from asap_ref.calibration.rounding import is_rounding
from asap_ref.fast.regression import regression_statistics
from asap_ref.support.arrays import is_array
from asap_ref.support.trees import place_like

OBJECTIVES = {"regression": regression_statistics, "kl": fast_kl_statistics}


def statistics_of_batch(objective, families, n_iter, epsilon, batch):
    """Sums of one batch, in the metric of an objective (method/regression.py, kl.py); none of what is rounding."""
    q, k, query_mask, key_mask = with_masks(batch)
    settings = {"n_iter": n_iter, "epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    statistics = OBJECTIVES[objective](q, k, place_like(q, families), **settings)
    return statistics.without(is_rounding(families, q, k, query_mask, key_mask))


def check_batches(batches, function):
    """Raise where one batch was given for a list of them: its arrays would be taken for batches themselves."""
    on_disk = isinstance(batches, tuple) and all(hasattr(x, "chunks") for x in batches)  # zarr, dask
    if isinstance(batches, tuple | list) and len(batches) in (2, 4) and is_array(batches[0]) and not on_disk:
        raise TypeError(f"{function}: batches is a list of batches, got the arrays of one; give [(q, k)]")


def with_masks(batch):
    """Check a batch, and return q, k, query_mask and key_mask; masks that are not there are None."""
    stacked = is_array(batch) and batch.shape[:1] == (2,)
    if not stacked and (not isinstance(batch, tuple | list) or len(batch) not in (2, 4)):
        got = f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            f"fit_amortizer: batches must yield tuples (q, k) or (q, k, query_mask, key_mask), got {got}"
        )
    for name, x in zip("qk", batch, strict=False):
        if not is_array(x) or x.ndim < 3:
            got = tuple(x.shape) if is_array(x) else type(x).__name__
            raise ValueError(
                f"fit_amortizer: {name} of a batch must be an array (batch, heads, tokens, d), got {got}"
            )
    return (*batch, None, None) if len(batch) == 2 else tuple(batch)
