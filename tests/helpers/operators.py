"""One table of every public operator with arguments it accepts: what the namespace and contract tests go through.

An entry is (function, {argument: NumPy array or Duals}, settings). A new operator is one more line.
"""

from dataclasses import replace

import numpy as np
from families import families
from problems import masks, qkv, scores

import asap_ref as ar
from asap_ref.model import layers
from asap_ref.support.trees import map_leaves, named_leaves

Q, K, V = qkv(2, 3, n=6, d=4, p=5)
S = scores(2, 5, 7)
F, G = scores(2, 5, seed=1), scores(2, 7, seed=2)
QM, KM = masks(2, 5, 7)
X, Y = scores(2, 6, seed=3), scores(2, 6, seed=4)
THETA = ar.slice_directions(4, 5)
WEIGHTS = scores(3, 8, seed=5)
AMORTIZER = ar.fit_amortizer([(Q, K)], n_slices=5, n_iter=4, epsilon=0.7)
PARTS = (
    (ar.Attention("asap", {"amortizer": AMORTIZER.of_heads([0, 2])}), (0, 2)),
    (ar.Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.7}), (1,)),
)
OF_MOMENTS = ar.fit_amortizer([(Q, K)], n_slices=5, n_iter=4, epsilon=0.7, quadratic=3, moments=3)
DUALS = ar.sinkhorn(S, epsilon=0.7)
MASKS = {"query_mask": QM, "key_mask": KM}
RECTANGULAR = qkv(2, 3, n=5, m=7, d=4, p=3)
SELF_MASKS = dict(zip(("query_mask", "key_mask"), masks(3, 6, 6, seed=1), strict=True))
LONG_K, LONG_V = qkv(2, 3, n=9, d=4, p=5)[1:]  # more keys than queries
TOKEN_MASKS = dict(zip(("query_mask", "key_mask"), (mask[:, None] for mask in masks(2, 6, 9)), strict=True))
THETA_OF_HEADS = np.stack([ar.slice_directions(4, 5, seed=seed) for seed in range(3)])
LONG_Y = scores(2, 9, seed=9)
LEVELS = {"x_weights": np.asarray([1.0, 2, 0, 0.5, 1, 0]), "y_weights": np.asarray([1.0, 0, 2, 1, 1, 1, 1, 1, 1])}
ROW = {"x": scores(4, 6, seed=6)}
AFFINE = {"weight": scores(6, 3, seed=7), "bias": scores(3, seed=8)}

OPERATORS = {
    "attention_scores": (ar.attention_scores, {"q": Q, "k": K}, {}),
    "c_transform": (ar.entropic_c_transform, {"scores": S, "dual": F}, {"epsilon": 0.7}),
    "c_transform masked": (ar.entropic_c_transform, {"scores": S, "dual": G, **MASKS}, {"onto": "query"}),
    "plan": (ar.transport_plan, {"scores": S, "duals": DUALS}, {"epsilon": 0.7}),
    "plan masked": (ar.transport_plan, {"scores": S, "duals": DUALS, **MASKS}, {"epsilon": 0.7}),
    "two_sided": (ar.two_sided_c_transform, {"scores": S, "query_dual": F}, {"epsilon": 0.7}),
    "two_sided masked": (ar.two_sided_c_transform, {"scores": S, "query_dual": F, **MASKS}, {}),
    "sinkhorn": (ar.sinkhorn, {"scores": S}, {"n_iter": 6, "epsilon": 0.7}),
    "sinkhorn masked": (ar.sinkhorn, {"scores": S, **MASKS}, {"n_iter": 6}),
    "sinkhorn init": (ar.sinkhorn, {"scores": S, "init": F}, {"n_iter": 6}),
    "over_relaxed": (
        ar.over_relaxed_dual,
        {"scores": S, "query_dual": F, "omega": np.asarray([1.6, 0.7])},
        {"n_iter": 3, "epsilon": 0.7},
    ),
    "over_relaxed masked": (
        ar.over_relaxed_dual,
        {"scores": S, "query_dual": F, "omega": np.asarray(1.3), **MASKS},
        {},
    ),
    "potentials": (ar.kantorovich_potentials_1d, {"x": X, "y": Y}, {}),
    "potentials squared": (ar.kantorovich_potentials_1d, {"x": X, "y": Y}, {"cost": "sqeuclidean"}),
    "potentials of other sizes": (ar.kantorovich_potentials_1d, {"x": X, "y": LONG_Y}, {}),
    "potentials weighted": (ar.kantorovich_potentials_1d, {"x": X, "y": LONG_Y, **LEVELS}, {}),
    "sliced_potentials": (ar.sliced_potentials, {"q": Q, "k": K, "directions": THETA}, {}),
    "sliced_potentials masked": (
        ar.sliced_potentials,
        {"q": Q, "k": LONG_K, "directions": THETA, **TOKEN_MASKS},
        {},
    ),
    "sliced_potentials by head": (ar.sliced_potentials, {"q": Q, "k": K, "directions": THETA_OF_HEADS}, {}),
    "features": (ar.dual_features, {"q": Q, "k": K, "families": families(THETA)}, {}),
    "features masked": (ar.dual_features, {"q": Q, "k": LONG_K, "families": families(THETA), **TOKEN_MASKS}, {}),
    "features quadratic": (
        ar.dual_features,
        {"q": Q, "k": K, "families": families(THETA, basis=THETA[:, :2])},
        {},
    ),
    "features with moments": (
        ar.dual_features,
        {"q": Q, "k": LONG_K, "families": families(THETA, basis=THETA[:, :2], moments=True), **TOKEN_MASKS},
        {},
    ),
    "query_dual": (
        ar.amortized_query_dual,
        {"q": Q, "k": K, "families": families(THETA), "weights": WEIGHTS},
        {},
    ),
    "query_dual masked": (
        ar.amortized_query_dual,
        {"q": Q, "k": LONG_K, "families": families(THETA_OF_HEADS), "weights": WEIGHTS, **TOKEN_MASKS},
        {},
    ),
    "softmax": (ar.softmax_attention, {"q": Q, "k": K, "v": V}, {}),
    "sinkhorn_attention": (ar.sinkhorn_attention, {"q": Q, "k": K, "v": V}, {"n_iter": 6}),
    "asap": (ar.asap_attention, {"q": Q, "k": K, "v": V}, {"amortizer": AMORTIZER}),
    "asap refined": (ar.asap_attention, {"q": Q, "k": K, "v": V}, {"amortizer": replace(AMORTIZER, refine=2)}),
    "asap over-relaxed": (
        ar.asap_attention,
        {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS},
        {"amortizer": replace(AMORTIZER, refine=2, omega=np.asarray([0.8, 1.2, 1.5]))},
    ),
    "asap with moments": (ar.asap_attention, {"q": Q, "k": K, "v": V}, {"amortizer": OF_MOMENTS}),
    "initial dual": (ar.initial_dual, {"q": Q, "k": LONG_K, **TOKEN_MASKS}, {"epsilon": 0.7}),
    "initial": (ar.initial_attention, {"q": Q, "k": K, "v": V}, {"epsilon": 0.7}),
    "initial masked": (ar.initial_attention, {"q": Q[0], "k": K[0], "v": V[0], **SELF_MASKS}, {}),
    "initial sorting": (ar.initial_attention, {"q": Q, "k": K, "v": V}, {"start": "sorting"}),
    "over-relaxed attention": (
        ar.over_relaxed_attention,
        {"q": Q, "k": K, "v": V},
        {"epsilon": 0.7, "omega": 1.5},
    ),
    "over-relaxed attention masked": (
        ar.over_relaxed_attention,
        {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS},
        {"n_iter": 2},
    ),
    "over-relaxed attention gaussian": (
        ar.over_relaxed_attention,
        {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS},
        {"initial": "gaussian"},
    ),
    "dual softmax": (ar.dual_softmax_attention, {"q": Q, "k": K, "v": V}, {"epsilon": 0.7}),
    "dual softmax masked": (ar.dual_softmax_attention, {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS}, {}),
    "features of one pass": (
        ar.dual_features,
        {"q": Q, "k": LONG_K, "families": (ar.OnePass(np.asarray([0.7, 2.0])),), **TOKEN_MASKS},
        {},
    ),
    "one_sided": (ar.one_sided_attention, {"q": Q, "k": K, "v": V}, {"amortizer": AMORTIZER}),
    "soft_sort": (ar.soft_sort, {"x": X}, {"temperature": 0.5}),
    "soft_sort masked": (ar.soft_sort, {"x": F, "mask": QM}, {"temperature": 0.5}),
    "sliced": (ar.sliced_attention, {"q": Q, "k": K, "v": V}, {"temperature": 0.5}),
    "sliced directions": (
        ar.sliced_attention,
        {"q": RECTANGULAR[0], "k": RECTANGULAR[1], "v": RECTANGULAR[2], "directions": THETA},
        {"temperature": 0.5, "slices_at_once": 2},
    ),
    "sliced masked": (ar.sliced_attention, {"q": Q[0], "k": K[0], "v": V[0], **SELF_MASKS}, {"hard": True}),
    "softmax masked": (ar.softmax_attention, {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS}, {}),
    "sinkhorn_attention masked": (
        ar.sinkhorn_attention,
        {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS},
        {"n_iter": 6},
    ),
    "asap masked": (
        ar.asap_attention,
        {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS},
        {"amortizer": AMORTIZER},
    ),
    "mixed": (ar.mixed_attention, {"q": Q, "k": K, "v": V}, {"parts": PARTS}),
    "mixed masked": (ar.mixed_attention, {"q": Q, "k": LONG_K, "v": LONG_V, **TOKEN_MASKS}, {"parts": PARTS}),
    "linear": (layers.linear, {**ROW, **AFFINE}, {}),
    "layer_norm": (layers.layer_norm, {**ROW, "gain": ROW["x"][0], "bias": ROW["x"][1]}, {}),
    "gelu": (layers.gelu, ROW, {}),
}


def vjp_of(function):
    """The operator's VJP, which stands under its name with _vjp behind, wherever the operator is public."""
    home = layers if hasattr(layers, function.__name__) else ar
    return getattr(home, f"{function.__name__}_vjp")


def map_arrays(change, value):
    """Apply ``change`` to an array, or to every array of a tuple such as Duals, or of a family of features."""
    return map_leaves(change, value)


def convert(arguments, change):
    """Apply ``change`` to every array of the arguments, inside Duals too; masks keep their dtype."""
    return {name: map_arrays(change, value) for name, value in arguments.items()}


def outputs(value):
    """Arrays of a result, flat, gradients of Duals included."""
    return [leaf for _, leaf in named_leaves("", value)]


def random_like(value, seed=0):
    """A cotangent for a result of NumPy arrays."""
    rng = np.random.default_rng(seed)
    return map_arrays(lambda x: rng.standard_normal(x.shape).astype(x.dtype), value)
