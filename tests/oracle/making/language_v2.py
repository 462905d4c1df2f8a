"""The words of the second version: those of the first, masks, sizes and memory, two building blocks, and families of features."""

from language_v1 import ATTENTION, MASKED
from language_v1 import FLAGS as FLAGS_V1
from language_v1 import OPERATORS as OPERATORS_V1

FLAGS = FLAGS_V1 | {
    "large_logits": FLAGS_V1["large_logits"].removesuffix(".")
    + (
        "; the last half step and the product with v are one softmax((g + S) / epsilon) v: exp((f + g + S) / epsilon) @ v rounds f, g "
        "and S, which nearly cancel, by their own size."
    ),
    "tile_edges": (
        "more tokens than a tile holds: the last tile is a partial one, each token is in exactly one tile, and sums run over all tiles."
    ),
    "rising_scores": (
        "the maximum grows along both axes, so each tile brings a new one: rescale the running sum *and* what has been accumulated by "
        "exp(old maximum - new maximum)."
    ),
    "many_tokens": "more than 256 tokens: counts, ranks and indices need more than 8 bits, counts more than half precision holds exactly.",
    "left_padding": (
        "valid tokens come last: a mask is no length, the first tile may be wholly masked (its maximum is -inf, and -inf minus -inf is NaN)."
    ),
    "mask_holes": "valid tokens have gaps between them, and token 0 may be padding: look at the mask of every token.",
    "mask_per_head": "the mask (..., H, n) differs between heads: index it by head, do not take that of the first.",
    "one_mask": "only one of the two masks is given: the other side has no padding, and n'/m' takes the whole length there.",
    "nan_in_padding": (
        "padding holds NaN, and 0 times NaN is NaN: set padding to 0 by selection before any product, in the backward pass too; "
        "gradients there are exactly 0."
    ),
    "full_mantissa": (
        "inputs have all the digits of the dtype: products in TF32, values, sums or cotangents in a shorter format lose them."
    ),
    "half_gradients": "gradients in half precision: keep what the backward pass needs, and sums of gradients, in float32, and round once.",
    "common_levels": (
        "n and m share divisors, so levels i/n and j/m coincide: compare them as the integers i m and j n, as floats miss some."
    ),
    "head_size": "d or p is not a round number, or d is above 64: loads of 4 or 8 numbers must not run over the end of a row.",
    "moments": (
        "with u and w the queries and keys on a basis: first u_a s_b for each entry s_b of mean(u), diag Cov(w), diag Cov(u) (b outer), then "
        "u_a u_b Cov(w)_ab and u_a u_b Cov(u)_ab for a <= b (a outer), each centred; covariances divide by m' and n'."
    ),
    "memory_layout": "inputs are views, transposed or interleaved: ask for the strides, or copy.",
}

LSE = {"q": "(..., n, d)", "k": "(..., m, d)", "query_dual": "(..., n)", **MASKED}
ATTEND = {**ATTENTION, "key_dual": "(..., m)", **MASKED}
BLOCKS = {
    "lse": (LSE, ["epsilon"], {"key_dual": "(..., m)"}, "Building blocks of kernels"),
    "attend": (ATTEND, ["epsilon"], {"out": "(..., n, p)"}, "Building blocks of kernels"),
}
TOKENS = {"q": "(..., n, d)", "k": "(..., m, d)"}
ON_BASIS = {**TOKENS, "basis": "(d, r) or (H, d, r)", **MASKED}
FAMILIES = {
    "cumulant_features": ({**TOKENS, **MASKED}, [], {"features": "(..., 3, n)"}, "Slices"),
    "quadratic_features": (ON_BASIS, [], {"features": "(..., F, n)"}, "Slices"),
    "moment_features": (ON_BASIS, [], {"features": "(..., F, n)"}, "Slices"),
}
NEW = BLOCKS | FAMILIES
BEFORE = {"sinkhorn": ["lse"], "softmax_attention": ["attend"], "dual_features": [*FAMILIES]}  # lowest floor first

OPERATORS = {}
for _name, _operator in OPERATORS_V1.items():
    OPERATORS |= {new: NEW[new] for new in BEFORE.get(_name, [])}
    OPERATORS[_name] = _operator
