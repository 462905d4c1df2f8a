"""n_slices="auto": the errors are those of brute force, and no more slices are taken than the dual needs."""

import numpy as np
import pytest
from families import families
from problems import masks

from asap_ref import Amortizer, attention_scores, fit_amortizer, sinkhorn
from asap_ref.calibration.batch import split_statistics_of_batch, statistics_of_batch
from asap_ref.calibration.slice_choice import COUNTS
from asap_ref.method.masks import centred
from asap_ref.method.slices import sliced_potentials

PLACES = np.random.default_rng(0).standard_normal((2, 3, 8, 4))
FIT = {"n_iter": 6, "epsilon": 0.7}


def sequences(count, seed=0):
    """Queries and keys of tokens that have a place and some noise, as in a trained layer: 3 heads, 8 tokens."""
    return tuple(2 * PLACES[:, None] + 0.4 * np.random.default_rng(seed).standard_normal((2, count, 3, 8, 4)))


def padded(count, seed=0):
    """Return the same with the ends of sequences padded."""
    query_mask, key_mask = (mask[:, None] for mask in masks(count, 8, 8, seed=seed))
    return *sequences(count, seed), query_mask, key_mask


def brute_force(batches, counts, **options):
    """Errors of the duals on what is held out, each number of slices fitted by itself."""
    every = [np.arange(len(q)) % 10 == 9 for q, *_ in batches]
    fit = [tuple(x[~held_out] for x in batch) for batch, held_out in zip(batches, every, strict=True)]
    judges = [tuple(x[held_out] for x in batch) for batch, held_out in zip(batches, every, strict=True)]
    errors = []
    for L in counts:
        amortizer = fit_amortizer(fit, n_slices=L, **FIT, **options)
        residual = square = 0.0
        for q, k, *given in judges:
            padding = dict(zip(("query_mask", "key_mask"), given, strict=bool(given)))
            dual = sinkhorn(
                attention_scores(q, k), n_iter=FIT["n_iter"] - 1, epsilon=FIT["epsilon"], **padding
            ).query
            target = centred(dual, padding.get("query_mask"))
            residual = residual + np.sum((amortizer.predict(q, k, **padding) - target) ** 2, (0, 2))
            square = square + np.sum(target**2, (0, 2))
        errors.append(np.sqrt(np.mean(residual / square)))
    return errors


@pytest.mark.parametrize(
    "options",
    [{}, {"candidates": 20}, {"quadratic": 4}, {"cumulants": False, "candidates": 70}],
)
@pytest.mark.parametrize("made", [sequences, padded])
def test_errors_are_those_of_fitting_each_number_alone(options, made):
    batches = [made(40), made(25, seed=1)]
    amortizer = fit_amortizer(batches, n_slices="auto", **FIT, **options)
    counts, errors = amortizer.slice_errors.T
    assert counts.tolist() == [L for L in COUNTS if options.get("candidates", 64) >= L]
    expected = brute_force(batches, counts.astype(int), **options)
    np.testing.assert_allclose(errors, expected, rtol=1e-6)
    chosen = int(min(L for L, error in zip(counts, expected, strict=True) if error <= 1.05 * min(expected)))
    # and the amortizer is that of this many slices, fitted on everything
    alone = fit_amortizer(batches, n_slices=chosen, **FIT, **options)
    np.testing.assert_array_equal(amortizer.family("slices").directions, alone.family("slices").directions)
    np.testing.assert_allclose(amortizer.weights, alone.weights, rtol=1e-6, atol=1e-9)
    assert amortizer.statistics.count == alone.statistics.count and alone.slice_errors is None


def test_a_dual_made_of_four_slices_gets_four(monkeypatch):
    """One of four slices, and one that needs them all, in place of the teacher's."""
    from asap_ref import slice_directions
    from asap_ref.calibration import batch as calibration
    from asap_ref.method.transport import Duals

    q, k = sequences(200)
    theta = slice_directions(4, 64)
    for used, expected in ((4, 4), (64, 64)):
        phi = sliced_potentials(q, k, theta[:, :used])[0]
        weights = np.random.default_rng(1).standard_normal((used, 1)) / theta.shape[1]
        dual = np.sum(weights * phi, axis=-2)
        monkeypatch.setattr(calibration, "sinkhorn", lambda S, dual=dual, **_: Duals(dual, dual))
        found = fit_amortizer([(q, k)], n_slices="auto", cumulants=False, ridge=1e-9)
        assert found.family("slices").directions.shape == (4, expected)


def test_the_tolerance_buys_fewer_slices():
    taken = [
        fit_amortizer([sequences(100)], n_slices="auto", tolerance=t, **FIT).family("slices").directions.shape[-1]
        for t in (0, 0.05, 10)
    ]
    assert taken == sorted(taken, reverse=True) and taken[-1] == 4 and taken[0] > 4


def test_batches_stream_and_the_split_is_the_same_every_time():
    batches = [sequences(20, seed) for seed in range(4)]
    found = [fit_amortizer(iter(batches), n_slices="auto", **FIT) for _ in range(2)]
    np.testing.assert_array_equal(found[0].slice_errors, found[1].slice_errors)
    whole = [
        tuple(np.concatenate(x) for x in zip(*batches, strict=True))
    ]  # 20 is a multiple of 10: the same split
    joined = fit_amortizer(whole, n_slices="auto", **FIT)
    np.testing.assert_allclose(joined.slice_errors, found[0].slice_errors, rtol=1e-9)


@pytest.mark.parametrize(("count", "held_out"), [(1, []), (2, [1]), (9, [8]), (10, [9]), (25, [9, 19])])
def test_every_tenth_sequence_is_held_out_or_the_last_of_fewer(count, held_out):
    q, k = sequences(count)
    fit, judge = split_statistics_of_batch(families(np.eye(4)), 5, 1.0, (q, k))
    rest = np.setdiff1d(np.arange(count), held_out)
    for found, rows in ((fit, rest), (judge, held_out)):
        assert found.count == 8 * len(rows)
        if len(rows):
            expected = statistics_of_batch(families(np.eye(4)), 5, 1.0, (q[rows], k[rows]))
            np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-12)


def test_both_parts_add_up_to_the_whole():
    arguments = (
        families(np.eye(4)),
        5,
        1.0,
        sequences(12),
    )
    fit, held_out = split_statistics_of_batch(*arguments)
    whole = statistics_of_batch(*arguments)
    np.testing.assert_allclose((fit + held_out).gram, whole.gram, rtol=1e-12)
    assert (fit + held_out).count == whole.count


def test_the_choice_survives_a_file(tmp_path):
    amortizer = fit_amortizer([sequences(30)], n_slices="auto", objective="dual", max_iter=3, **FIT)
    amortizer.save(tmp_path / "a.npz")
    loaded = Amortizer.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.slice_errors, amortizer.slice_errors)
    np.testing.assert_array_equal(amortizer.of_heads([1]).slice_errors, amortizer.slice_errors)


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([sequences(20)], {"n_slices": "few"}, ValueError, "n_slices must be an integer or 'auto', got 'few'"),
        ([sequences(20)], {"candidates": 3}, ValueError, "candidates must be at least 4, got 3"),
        ([sequences(20)], {"tolerance": -0.1}, ValueError, "tolerance must be at least 0"),
        ([sequences(20)], {"tolerance": "a little"}, TypeError, "tolerance must be a number"),
        ([sequences(1)] * 20, {}, ValueError, "give batches of several sequences, or a number of slices"),
        ([tuple(x[0] for x in sequences(1))], {}, ValueError, "leave none to fit on or to judge by"),
        ([], {}, ValueError, "batches is empty"),
        (
            [(*sequences(20), np.zeros((20, 1, 8), bool), np.zeros((20, 1, 8), bool))],
            {},
            ValueError,
            "batches hold no valid token",
        ),
    ],
)
def test_what_cannot_be_chosen_says_so(batches, options, error, message):
    with pytest.raises(error, match=message):
        fit_amortizer(batches, **{"n_slices": "auto", **FIT, **options})
