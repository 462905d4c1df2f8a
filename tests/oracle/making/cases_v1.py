"""What the first version of the oracle asks: the inputs of every case. One case, one line.

Each case draws from a seed made of its own name: a new case changes no other.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from inputs_v1 import (
    amortized,
    apart,
    espformer,
    grid,
    masked_amortized,
    masked_espformer,
    masked_qk,
    masked_qkv,
    masked_samples,
    masked_scores,
    qk,
    qkv,
    theta,
    with_basis,
    with_own_directions,
)


@dataclass
class Spec:
    """A case before it is computed."""

    id: str
    note: str
    flags: str  # separated by blanks
    inputs: dict
    arguments: dict = field(default_factory=dict)
    fixed: tuple = ()  # inputs without a gradient, or "all"

    @property
    def operator(self):
        return self.id.split("/")[0]


SPECS = []


def add(id_, flags, note, make, fixed=(), **arguments):
    rng = np.random.default_rng(zlib.crc32(id_.encode()))
    inputs = make(lambda *shape, spread=1.0: grid(rng, *shape, spread=spread))
    SPECS.append(Spec(id_, note, flags, inputs, arguments, fixed))


# fmt: off

# ------------------------------------------------------------------------------------------------ scores and duals

add("attention_scores/plain", "plain score_scale", "square, d = 8", lambda g: {"q": g(5, 8), "k": g(5, 8)})
add(
    "attention_scores/rectangular",
    "score_scale row_instead_of_column leading_axes unequal_lengths",
    "7 queries, 4 keys, two heads",
    lambda g: {"q": g(2, 7, 3), "k": g(2, 4, 3)},
)

C = "entropic_c_transform"
pair = lambda n, m, side: lambda g: {"scores": g(n, m, spread=2), "dual": g(n if side == "key" else m)}
add(f"{C}/onto_key", "plain row_instead_of_column sign", "square, onto keys", pair(6, 6, "key"), onto="key", epsilon=1.0)
add(f"{C}/onto_query", "plain row_instead_of_column sign", "square, onto queries", pair(6, 6, "query"), onto="query", epsilon=1.0)
add(f"{C}/epsilon", "epsilon_scaling", "epsilon 0.25", pair(5, 5, "key"), onto="key", epsilon=0.25)
add(f"{C}/epsilon_query", "epsilon_scaling", "epsilon 4, onto queries", pair(5, 5, "query"), onto="query", epsilon=4.0)
add(f"{C}/unequal_lengths", "unequal_lengths", "7 queries, 3 keys", pair(7, 3, "key"), onto="key", epsilon=1.0)
add(f"{C}/unequal_lengths_epsilon", "unequal_lengths epsilon_scaling", "3 queries, 7 keys, epsilon 2", pair(3, 7, "key"), onto="key", epsilon=2.0)
add(f"{C}/leading_axes", "leading_axes", "2 x 3 problems of different size of score", lambda g: {"scores": g(2, 3, 4, 4) * np.asarray([1.0, 8, 16])[:, None, None], "dual": g(2, 3, 4)}, onto="key", epsilon=1.0)
add(f"{C}/large_logits", "large_logits", "scores up to 800", lambda g: {"scores": 200 * g(6, 6), "dual": 100 * g(6)}, onto="key", epsilon=0.5)
add(f"{C}/large_logits_query", "large_logits", "scores down to -4000, onto queries", lambda g: {"scores": 1000 * g(4, 4) - 2000, "dual": g(4)}, onto="query", epsilon=1.0)

add(f"{C}/padding", "padding", "two sequences, padding holds 100", lambda g: masked_scores(g, 6, 5, (4, 6), (3, 4), "dual_n"), onto="key", epsilon=1.0)
add(f"{C}/padding_query", "padding", "onto queries", lambda g: masked_scores(g, 5, 6, (3, 5), (4, 2), "dual_m"), onto="query", epsilon=0.5)
add(f"{C}/padding_below_large_negatives", "padding large_logits half_precision_overflow", "valid scores near -20000: a mask of -10000 is above them", lambda g: (lambda x: {**x, "scores": np.where(x["scores"] == 100, 100, x["scores"] - 20000)})(masked_scores(g, 5, 5, (3, 5), (4, 3), "dual_n")), onto="key", epsilon=1.0)
add(f"{C}/fully_masked", "fully_masked padding", "the second sequence has no valid query", lambda g: masked_scores(g, 4, 4, (3, 0), (2, 3), "dual_n"), onto="key", epsilon=1.0)
add(f"{C}/single_token", "single_token", "one query, one key", lambda g: {"scores": g(1, 1), "dual": g(1)}, onto="key", epsilon=0.5)

P = "transport_plan"
near = lambda g, n, m: {"scores": g(n, m), "query_dual": -1.5 + g(n, spread=0.5), "key_dual": g(m, spread=0.5) - 1}
add(f"{P}/plain", "plain sign key_dual_for_query_dual", "square", lambda g: near(g, 5, 5), epsilon=1.0)
add(f"{P}/epsilon", "epsilon_scaling", "epsilon 0.5, 4 queries and 6 keys", lambda g: near(g, 4, 6), epsilon=0.5)
add(f"{P}/gauge", "gauge", "duals shifted by 512 against each other", lambda g: (lambda x: {**x, "query_dual": x["query_dual"] + 512, "key_dual": x["key_dual"] - 512})(near(g, 5, 5)), epsilon=1.0)
add(f"{P}/large_logits", "large_logits half_precision_overflow", "scores near 800 that the duals cancel", lambda g: (lambda f, h, s: {"scores": s - f[:, None] - h[None, :], "query_dual": f, "key_dual": h})(400 * g(5), 100 * g(5), g(5, 5, spread=2)), epsilon=1.0)
add(f"{P}/padding", "padding", "padding holds 100", lambda g: masked_scores(g, 5, 4, (3, 5), (4, 2), "query_dual", "key_dual"), epsilon=2.0)

T = "two_sided_c_transform"
add(f"{T}/plain", "plain two_sided wrong_half_step_order", "square", lambda g: {"scores": g(6, 6, spread=2), "query_dual": g(6, spread=2)}, epsilon=1.0)
add(f"{T}/epsilon", "epsilon_scaling unequal_lengths", "epsilon 0.5, 5 queries and 8 keys", lambda g: {"scores": g(5, 8), "query_dual": g(5)}, epsilon=0.5)
add(f"{T}/gauge", "gauge two_sided", "a prediction off by 300: the plan does not see it", lambda g: {"scores": g(5, 5, spread=2), "query_dual": g(5) + 300}, epsilon=1.0)
add(f"{T}/large_logits", "large_logits", "scores up to 400", lambda g: {"scores": 100 * g(6, 6), "query_dual": 100 * g(6)}, epsilon=1.0)
add(f"{T}/padding", "padding", "padding holds 100", lambda g: masked_scores(g, 6, 6, (4, 5), (5, 3), "query_dual"), epsilon=1.0)

M = "marginal_error"
plan = lambda g, n, m: {"plan": np.abs(g(n, m)) / 4}
add(f"{M}/plain", "plain row_instead_of_column", "square", lambda g: plan(g, 5, 5), fixed="all")
add(f"{M}/unequal_lengths", "unequal_lengths", "columns of a 6 x 4 plan sum to 3/2", lambda g: plan(g, 6, 4), fixed="all")
add(f"{M}/padding", "padding", "columns sum to n'/m' of the valid tokens", lambda g: (lambda x: {"plan": np.where(x["query_mask"][:, :, None] & x["key_mask"][:, None, :], np.abs(x["scores"]) / 4, 0), "query_mask": x["query_mask"], "key_mask": x["key_mask"]})(masked_scores(g, 5, 6, (3, 5), (2, 6))), fixed="all")

S = "sinkhorn"
scores = lambda n, m, spread=2: lambda g: {"scores": g(n, m, spread=spread)}
add(f"{S}/softmax_start", "softmax_start", "n_iter = 0", scores(5, 5), n_iter=0, epsilon=1.0)
add(f"{S}/one_iteration", "plain wrong_half_step_order not_converged", "n_iter = 1", scores(6, 6), n_iter=1, epsilon=1.0)
add(f"{S}/three_iterations", "not_converged wrong_half_step_order gradient_through_both_sides", "n_iter = 3, spread 4", scores(6, 6, 4), n_iter=3, epsilon=1.0)
add(f"{S}/epsilon", "epsilon_scaling", "epsilon 0.25, n_iter = 2", scores(6, 6, 1), n_iter=2, epsilon=0.25)
add(f"{S}/epsilon_large", "epsilon_scaling", "epsilon 4", scores(5, 5), n_iter=2, epsilon=4.0)
add(f"{S}/unequal_lengths", "unequal_lengths row_instead_of_column", "8 queries, 3 keys", scores(8, 3), n_iter=2, epsilon=1.0)
add(f"{S}/converged", "converged gauge", "60 iterations of an easy problem", scores(6, 6, 1), n_iter=60, epsilon=1.0)
add(f"{S}/init", "init", "a query dual to start from", lambda g: {"scores": g(5, 6, spread=2), "init": g(5)}, n_iter=2, epsilon=1.0)
add(f"{S}/large_logits", "large_logits", "score range above 250, as trained heads have it", scores(6, 6, 40), n_iter=3, epsilon=1.0)
add(f"{S}/large_logits_small_epsilon", "large_logits epsilon_scaling", "score over epsilon up to 2000", scores(5, 5, 8), n_iter=3, epsilon=0.015625)
add(f"{S}/padding", "padding", "padding holds 100", lambda g: masked_scores(g, 6, 6, (4, 6), (5, 3)), n_iter=3, epsilon=1.0)
add(f"{S}/fully_masked", "fully_masked padding", "no valid key in the second sequence", lambda g: masked_scores(g, 4, 4, (3, 2), (2, 0)), n_iter=2, epsilon=1.0)
add(f"{S}/single_token", "single_token", "one valid token of four", lambda g: masked_scores(g, 4, 4, (1,), (1,)), n_iter=2, epsilon=0.5)
add(f"{S}/leading_axes", "leading_axes", "2 x 3 problems of very different size", lambda g: {"scores": g(2, 3, 4, 4) * np.asarray([1.0, 8, 16])[:, None, None]}, n_iter=2, epsilon=1.0)

# ---------------------------------------------------------------------------------------------- slices and features

K = "kantorovich_potentials_1d"

xy = lambda n, m=None: lambda g: {"x": apart(g, n), "y": apart(g, m or n)}
add(f"{K}/plain", "plain sort_order trapezoid", "seven points in no order", xy(7), cost="bilinear")
add(f"{K}/squared", "squared_cost_half", "the same with the squared cost", xy(7), cost="sqeuclidean")
add(f"{K}/descending", "sort_order", "x ascending, y descending", lambda g: {"x": np.arange(6) / 2 - 1, "y": 1.25 - np.arange(6) ** 2 / 8}, cost="bilinear")
add(f"{K}/two_points", "trapezoid", "two points: one slope, the mean of both y", lambda g: {"x": np.asarray([0.0, 1]), "y": np.asarray([0.0, 2])}, cost="bilinear")
add(f"{K}/ties", "ties_in_sort", "equal samples on both sides", lambda g: {"x": np.round(apart(g, 8)), "y": np.round(apart(g, 8))}, fixed="all", cost="bilinear")
add(f"{K}/all_equal", "ties_in_sort", "all samples equal", lambda g: {"x": np.full(4, 1.5), "y": np.full(4, -0.5)}, fixed="all", cost="bilinear")
add(f"{K}/single_token", "single_token", "one sample a side", lambda g: {"x": g(1), "y": g(1)}, cost="sqeuclidean")
add(f"{K}/float32_inside", "float32_inside", "samples near 1000 that differ by 1/64", lambda g: {"x": 1000 + apart(g, 8) / 2, "y": 1000 + apart(g, 8) / 2}, cost="sqeuclidean")
add(f"{K}/leading_axes", "leading_axes", "2 x 2 problems", lambda g: {"x": apart(g, 2, 2, 5), "y": 3 * apart(g, 2, 2, 5)}, cost="bilinear")

add(f"{K}/unequal_lengths", "unequal_lengths", "7 and 3 points", xy(7, 3), cost="bilinear")
add(f"{K}/unequal_lengths_common_levels", "unequal_lengths trapezoid", "4 and 6 points: levels 1/2 are common, the others are not", xy(4, 6), cost="sqeuclidean")
add(f"{K}/unequal_ties", "ties_in_sort unequal_lengths", "5 and 8 points, many equal", lambda g: {"x": np.round(apart(g, 5)), "y": np.round(apart(g, 8))}, fixed="all", cost="bilinear")
add(f"{K}/weights", "weights", "masses that sum to 8 and to 4", lambda g: {"x": apart(g, 5), "y": apart(g, 4), "x_weights": np.asarray([1.0, 2, 0.5, 3, 1.5]), "y_weights": np.asarray([0.5, 1.25, 2, 0.25])}, fixed=("x_weights", "y_weights"), cost="bilinear")

add(f"{K}/padding", "padding sort_order", "as many samples a side; padding holds 0 and 100", lambda g: masked_samples(g, 6, 6, (4, 6), (4, 6)), cost="bilinear")
add(f"{K}/padding_unequal_lengths", "padding unequal_lengths centring", "4 and 3, then 6 and 5 samples", lambda g: masked_samples(g, 6, 5, (4, 6), (3, 5)), cost="sqeuclidean")
add(f"{K}/fully_masked", "fully_masked padding", "no y in the second problem", lambda g: masked_samples(g, 4, 4, (3, 2), (2, 0)), cost="bilinear")

D = "slice_directions"
none = lambda g: {}
add(f"{D}/orthogonal", "orthogonal_slices", "4 slices of dimension 4", none, fixed="all", dim=4, n_slices=4, kind="orthogonal", seed=0)
add(f"{D}/more_than_dim", "orthogonal_slices", "10 slices of dimension 4: blocks of 4, 4 and 2", none, fixed="all", dim=4, n_slices=10, kind="orthogonal", seed=1)
add(f"{D}/gaussian", "orthogonal_slices", "independent unit columns", none, fixed="all", dim=5, n_slices=7, kind="gaussian", seed=0)

L = "sliced_potentials"
add(f"{L}/plain", "plain slice_scale centring", "d = 5, 3 slices", qk(7, 7, 5, 3))
add(f"{L}/leading_axes", "leading_axes slice_scale", "2 x 2 problems, more slices than dimensions", qk(5, 5, 2, 3, 2, 2))
add(f"{L}/single_token", "single_token centring", "one token: potentials are 0", qk(1, 1, 4, 2))

add(f"{L}/unequal_lengths", "unequal_lengths centring", "6 queries, 4 keys", qk(6, 4, 3, 2))
add(f"{L}/padding", "padding centring", "padding holds 100", lambda g: masked_qk(g, 6, 5, 3, 2, (4, 6), (4, 3)))

F = "dual_features"
add(f"{F}/slices_only", "centring slice_scale", "without cumulants", qk(6, 6, 5, 3), cumulants=False)
add(f"{F}/cumulants", "plain cumulants centring", "with cumulants", qk(6, 6, 5, 3), cumulants=True)

add(f"{F}/unequal_lengths", "unequal_lengths cumulants", "5 queries, 8 keys", qk(5, 8, 4, 2), cumulants=True)
add(f"{F}/padding", "padding cumulants centring", "means and covariance over valid tokens", lambda g: masked_qk(g, 6, 5, 3, 2, (4, 6), (4, 3)), cumulants=True)
add(f"{F}/single_token", "single_token cumulants", "one token: every feature is 0", qk(1, 1, 3, 2), cumulants=True)
add(f"{F}/quadratic", "quadratic", "a basis of rank 3", lambda g: {**qk(6, 6, 4, 2)(g), "basis": theta(4, 3, seed=1)}, fixed=("basis",), cumulants=True)

A = "amortized_query_dual"
add(f"{A}/plain", "plain head_weights", "two heads, batch of two", amortized(5, 5, 4, 3, 2, 2), cumulants=True)
add(f"{A}/slices_only", "slice_scale", "three heads, no cumulants", amortized(6, 6, 4, 2, 3, 1, n_cumulants=0), cumulants=False)

add(f"{A}/padding", "padding head_weights", "padding holds 100, masks (batch, 1, tokens)", lambda g: masked_amortized(g, 6, 5, 4, 2, 2, (4, 6), (4, 3)), cumulants=True)
add(f"{A}/head_directions", "head_directions head_weights", "each head has its own slices", with_own_directions(amortized(5, 5, 4, 2, 2, 1)), cumulants=True)
add(f"{A}/quadratic", "quadratic head_weights", "with a basis of rank 3", with_basis(amortized(5, 5, 4, 2, 2, 1), 3), fixed=("basis",), cumulants=True)

# ---------------------------------------------------------------------------------------------------- attentions

V = "softmax_attention"
add(f"{V}/plain", "plain score_scale", "two heads", qkv(5, 5, 4, 3, 2))
add(f"{V}/unequal_lengths", "unequal_lengths row_instead_of_column", "4 queries, 7 keys", qkv(4, 7, 4, 2))
add(f"{V}/large_logits", "large_logits", "scores up to several hundred", qkv(5, 5, 8, 2, spread=8.0))
add(f"{V}/padding", "padding", "padding holds 100, masks (batch, 1, tokens)", lambda g: masked_qkv(g, 5, 6, 4, 2, 2, (3, 5), (4, 2)))
add(f"{V}/fully_masked", "fully_masked padding", "no valid key in the second sequence", lambda g: masked_qkv(g, 4, 4, 4, 2, 1, (3, 2), (2, 0)))
add(f"{V}/half_precision_overflow", "half_precision_overflow large_logits", "scores beyond the range of float16", lambda g: {"q": 128 * g(4, 4), "k": 128 * g(4, 4), "v": g(4, 2)}, fixed=("q", "k"))

H = "sinkhorn_attention"
add(f"{H}/plain", "plain score_scale not_converged", "two heads, 3 iterations", qkv(5, 5, 4, 3, 2, spread=2.0), n_iter=3, epsilon=1.0)
add(f"{H}/epsilon", "epsilon_scaling gradient_through_both_sides", "epsilon 0.25, 5 iterations", qkv(5, 5, 3, 2), n_iter=5, epsilon=0.25)
add(f"{H}/unequal_lengths", "unequal_lengths", "6 queries, 4 keys", qkv(6, 4, 4, 2), n_iter=3, epsilon=1.0)
add(f"{H}/softmax_start", "softmax_start", "no iteration is softmax attention", qkv(5, 5, 4, 2), n_iter=0, epsilon=1.0)
add(f"{H}/large_logits", "large_logits", "scores up to several hundred", qkv(5, 5, 8, 2, spread=6.0), n_iter=4, epsilon=1.0)
add(f"{H}/padding", "padding unequal_lengths", "padding holds 100", lambda g: masked_qkv(g, 6, 5, 4, 2, 2, (4, 6), (5, 3)), n_iter=3, epsilon=0.5)
add(f"{H}/fully_masked", "fully_masked padding", "no valid query in the second sequence", lambda g: masked_qkv(g, 4, 4, 4, 2, 1, (3, 0), (2, 3)), n_iter=2, epsilon=1.0)

N = "asap_attention"
add(f"{N}/plain", "plain head_weights two_sided", "two heads", amortized(5, 5, 4, 3, 2, 1, values=2), cumulants=True, epsilon=1.0, refine=0)
add(f"{N}/epsilon", "epsilon_scaling", "epsilon 0.5: the prediction has the units of the scores", amortized(6, 6, 4, 3, 1, 2, values=2), cumulants=True, epsilon=0.5, refine=0)
add(f"{N}/slices_only", "slice_scale gradient_through_both_sides", "no cumulants", amortized(6, 6, 4, 4, 1, 1, values=2, n_cumulants=0), cumulants=False, epsilon=1.0, refine=0)
add(f"{N}/large_logits", "large_logits", "scores up to several hundred", amortized(6, 6, 4, 3, 1, 1, values=2, spread=6.0), cumulants=True, epsilon=1.0, refine=0)

add(f"{N}/unequal_lengths", "unequal_lengths", "6 queries, 4 keys", amortized(6, 4, 4, 3, 1, 1, values=2), cumulants=True, epsilon=1.0, refine=0)
add(f"{N}/padding", "padding unequal_lengths", "padding holds 100", lambda g: masked_amortized(g, 6, 5, 4, 2, 2, (4, 6), (4, 3), values=2), cumulants=True, epsilon=1.0, refine=0)
add(f"{N}/fully_masked", "fully_masked padding", "no valid key in the second sequence", lambda g: masked_amortized(g, 4, 4, 3, 2, 1, (3, 2), (2, 0), values=2), cumulants=True, epsilon=1.0, refine=0)
add(f"{N}/refine", "refine wrong_half_step_order", "two more iterations", amortized(6, 6, 4, 3, 1, 1, values=2), cumulants=True, epsilon=1.0, refine=2)
add(f"{N}/quadratic", "quadratic", "with a basis of rank 3", with_basis(amortized(5, 5, 4, 2, 2, 1, values=2), 3), fixed=("basis",), cumulants=True, epsilon=1.0, refine=0)

E = "sliced_attention"

soft = dict(temperature=0.125, inverse_temperature=0.5, hard=False)
add(f"{E}/plain", "plain soft_sort slice_weights", "slices are the coordinates of the head", espformer(5, 5, 3, 2), **soft)
add(f"{E}/directions", "soft_sort slice_weights", "given slices", espformer(5, 5, 4, 2, 3), **soft)
add(f"{E}/cold", "soft_sort large_logits", "t = 1/1024: nearly hard sorting", espformer(6, 6, 2, 2), **(soft | {"temperature": 0.0009765625}))
add(f"{E}/hard", "soft_sort sort_order", "exact sorting", espformer(6, 6, 3, 2), **(soft | {"hard": True}))
add(f"{E}/unequal_lengths", "rank_coupling unequal_lengths", "6 queries, 4 keys", espformer(6, 4, 2, 2), **soft)
add(f"{E}/padding", "padding rank_coupling", "padding holds 100", masked_espformer, **soft)

def with_columns(make):
    """Column sums of a teacher too, which sum to n'."""

    def made(g):
        x = make(g)
        columns = np.abs(g(*x["scores"].shape[:-2], x["scores"].shape[-1])) + 0.25
        if "key_mask" in x:
            columns = np.where(x["key_mask"], columns, 0)
        n = x["query_mask"].sum(-1, keepdims=True) if "query_mask" in x else x["scores"].shape[-2]
        columns = np.round(columns / columns.sum(-1, keepdims=True) * n * 4096) / 4096
        columns[..., 0] += np.squeeze(n - columns.sum(-1, keepdims=True), -1)
        masks = {name: x.pop(name) for name in list(x) if name.endswith("mask")}
        return {**x, "teacher_columns": columns, **masks}

    return made


J, B = "kl_loss", "dual_loss"
given = lambda n, m: lambda g: {"scores": g(n, m, spread=2), "query_dual": g(n)}
kept = ("scores", "teacher_columns")
add(f"{J}/plain", "plain calibration_loss", "square", with_columns(given(6, 6)), fixed=kept, epsilon=1.0)
add(f"{J}/epsilon", "epsilon_scaling calibration_loss", "epsilon 0.5", with_columns(given(5, 5)), fixed=kept, epsilon=0.5)
add(f"{J}/unequal_lengths", "unequal_lengths calibration_loss", "6 queries, 4 keys", with_columns(given(6, 4)), fixed=kept, epsilon=1.0)
add(f"{J}/padding", "padding calibration_loss", "padding holds 100", with_columns(lambda g: masked_scores(g, 6, 5, (4, 6), (5, 3), "query_dual")), fixed=kept, epsilon=1.0)
add(f"{B}/plain", "plain calibration_loss sign", "square", given(6, 6), fixed=kept, epsilon=1.0)
add(f"{B}/epsilon", "epsilon_scaling calibration_loss", "epsilon 2", given(5, 5), fixed=kept, epsilon=2.0)
add(f"{B}/unequal_lengths", "unequal_lengths calibration_loss", "4 queries, 7 keys: g counts n/m times", given(4, 7), fixed=kept, epsilon=1.0)
add(f"{B}/padding", "padding calibration_loss", "padding holds 100", lambda g: masked_scores(g, 6, 5, (4, 6), (4, 3), "query_dual"), fixed=kept, epsilon=1.0)

add(
    "fit_amortizer/regression",
    "normal_equations centring",
    "12 sequences, two heads, teacher of 4 iterations",
    lambda g: {"q": g(12, 2, 6, 3) + 2 * g(2, 6, 3), "k": g(12, 2, 6, 3) + 2 * g(2, 6, 3), "directions": theta(3, 3)},
    fixed="all",
    n_iter=4,
    epsilon=1.0,
    ridge=0.0001220703125,
    cumulants=True,
)
