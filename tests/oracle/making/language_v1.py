"""The words of the first version of the oracle: flags with their hints, and operators with their shapes."""

FLAGS = {
    "plain": "the ordinary case; if it fails, compare the formula itself with README.md before anything else.",
    "score_scale": "scores are q·k / sqrt(d), divided once, d the dimension of a head; a transport cost is their negative.",
    "epsilon_scaling": (
        "epsilon is not 1 here: divide exponents by it once, multiply the log-sum-exp by it once; duals have the units "
        "of the scores."
    ),
    "row_instead_of_column": (
        "onto keys the sum runs over queries (axis -2), onto queries over keys (axis -1); rows of a plan are queries."
    ),
    "unequal_lengths": (
        "n differs from m: a valid column sums to n'/m', so the key dual carries epsilon log(n'/m'); potentials walk the "
        "merged quantile levels i/n and j/m."
    ),
    "large_logits": (
        "scores reach hundreds: subtract the maximum inside the log-sum-exp, stay in the log domain, "
        "never exponentiate a score or divide by a sum that may underflow."
    ),
    "padding": (
        "masked pairs must be -inf *before* the exponential, counts are those of valid tokens (n', m'), means run over "
        "valid tokens, and results at padding are exactly 0 whatever padding holds."
    ),
    "fully_masked": "a sequence without a valid token gives zeros, not NaN (0/0, or -inf minus -inf).",
    "single_token": "one token: its plan is 1, its centred potentials are 0, and no difference or variance may divide by 0.",
    "softmax_start": (
        "f starts as -epsilon LSE_j(S / epsilon), so n_iter = 0 is row softmax with g = 0; it does not start at zero."
    ),
    "wrong_half_step_order": (
        "an iteration updates the key dual first, then the query dual with the new key dual: rows are exact at the end, "
        "columns are not."
    ),
    "not_converged": (
        "few iterations, so the number counts: n_iter = T means T updates of each dual after the softmax start "
        "(2T + 1 half steps), and no early stop."
    ),
    "converged": "both marginals hold at convergence: rows sum to 1, columns to n/m; any correct solver agrees.",
    "init": "init replaces the softmax start as the query dual f^(0); the first half step is then onto keys.",
    "gauge": "(f + t, g - t) is the same plan for any t, also a large one: add f and g before scores are added or in full precision.",
    "key_dual_for_query_dual": "f belongs to queries (rows, axis -2), g to keys (columns, axis -1); here they differ strongly.",
    "sign": "plans are exp((f + g + S) / epsilon) with S a similarity: plus signs throughout, minus before the log-sum-exp.",
    "sort_order": (
        "sort both samples ascending, match equal ranks (the bilinear cost -xy), and put potentials back in the order "
        "of the input: the inverse of the sorting permutation, not the permutation."
    ),
    "trapezoid": (
        "phi falls by the *mean* of the two neighbouring y times the step in x: (y_i + y_(i+1)) / 2, neither y_i nor y_(i+1) alone."
    ),
    "ties_in_sort": "equal samples are in the data: any order of theirs gives the same potentials, and a zero step adds nothing.",
    "squared_cost_half": "the squared cost is (x - y)² / 2: add x²/2 to phi and y²/2 to psi, with the half.",
    "weights": "samples have masses: levels are cumulative weights, normalised to 1; centring is by the weighted mean.",
    "centring": "potentials and features have mean zero over the valid tokens of each sequence, the key side included.",
    "slice_scale": "project q·d^(-1/4) and k·d^(-1/4), so that slices of an orthonormal basis sum to q·k / sqrt(d).",
    "orthogonal_slices": "directions are unit columns (d, L); orthogonal ones are orthonormal within each block of d columns.",
    "cumulants": (
        "three features follow the slices, of u = q / sqrt(d): u·mean(k), |u|², uᵀ Cov(k) u (divide by m), in this order, centred."
    ),
    "quadratic": (
        "with u = d^(-1/4) Bᵀq and w = d^(-1/4) Bᵀ mean(k) of a basis B (d, r): after the other features come u, then u_a u_b for "
        "a <= b (a outer), then u_a w_b (b outer), each centred."
    ),
    "head_directions": "directions (H, d, L) are a head's own; without the first axis all heads share them.",
    "refine": "refine = R adds R whole Sinkhorn iterations after the two-sided transform: 1 + R in all, from the predicted dual.",
    "soft_sort": (
        "U_rj = softmax over tokens j of -(x_j - s_r)² / t, s the sorted x, q and k scaled by d^(-1/2); rows are ranks, so a plan "
        "is U(q)ᵀ W U(k)."
    ),
    "rank_coupling": "for n' != m' ranks are matched by W_rs = n' |[r/n', (r+1)/n'] ∩ [s/m', (s+1)/m']|; it is the identity if n' = m'.",
    "slice_weights": (
        "slices count by softmax_l(-beta sum_ij D_ij (G_l)_ij): a sum, not a mean, D the distances (not squared) of scaled q and k."
    ),
    "head_weights": "weights are (H, F): each head has its own, and the dual is the sum over features.",
    "leading_axes": "leading axes are independent problems: sums, maxima and counts never run across batch or head.",
    "two_sided": "first the key dual from the prediction, then the query dual from that key dual; the prediction itself is not returned.",
    "float32_inside": "entries differ by 1e-5 of their size: float32 anywhere inside (sorts, sums, constants) loses them in float64.",
    "half_precision_overflow": "scores, or sums of them, exceed what float16 holds (65504, and eleven bits): compute them in float32 and return the result in half.",
    "gradient_through_both_sides": (
        "the gradient runs through every half step of both duals (nothing is detached), through sorts along their order, "
        "and through the prediction."
    ),
    "normal_equations": (
        "regress the centred closure-ready dual f^(T-1) (T - 1 iterations, not T) on centred features over all tokens; the "
        "ridge is relative to each feature's second moment."
    ),
    "calibration_loss": (
        "losses are per valid query; kl is that of the plan after the two-sided transform of the prediction, dual that of the "
        "prediction and its c-transform; the gradient runs through both transforms."
    ),
    "optimizer": "AdamW with bias correction, decoupled weight decay on arrays of two axes only, epsilon outside the root.",
    "transformer": (
        "pre-norm blocks, tanh GELU, layer norm epsilon 1e-5, class token first, positions added after it, logits from the class token."
    ),
    "compile": "one amortizer a layer, fitted on the q and k the trained model produced there; parameters stay, attention changes.",
}

ATTENTION = {"q": "(..., n, d)", "k": "(..., m, d)", "v": "(..., m, p)"}
MASKED = {"query_mask": "(..., n) boolean, optional", "key_mask": "(..., m) boolean, optional"}
AMORTIZED = {"directions": "(d, L) or (H, d, L)", "weights": "(H, F)", "basis": "(d, r), optional"}

MODEL = ["image_size", "patch", "n_heads", "n_iter", "epsilon"]
BLOCK = {
    "norm1/gain": "(w,)",
    "norm1/bias": "(w,)",
    "heads/qkv/weight": "(w, 3w)",
    "heads/qkv/bias": "(3w,)",
    "heads/out/weight": "(w, w)",
    "heads/out/bias": "(w,)",
    "norm2/gain": "(w,)",
    "norm2/bias": "(w,)",
    "mlp/up/weight": "(w, 2w)",
    "mlp/up/bias": "(2w,)",
    "mlp/down/weight": "(2w, w)",
    "mlp/down/bias": "(w,)",
}
PARAMETERS = {
    "embedding/patch/weight": "(patch², w)",
    "embedding/patch/bias": "(w,)",
    "embedding/class_token": "(w,)",
    "embedding/position": "(n, w)",
    **{f"block{i}/{name}": shape for i in range(2) for name, shape in BLOCK.items()},
    "norm/gain": "(w,)",
    "norm/bias": "(w,)",
    "head/weight": "(w, classes)",
    "head/bias": "(classes,)",
}

# operator: inputs, arguments, outputs, source; lowest floor first, since a failure is best mended from below
OPERATORS = {
    "attention_scores": (
        {"q": "(..., n, d)", "k": "(..., m, d)"},
        [],
        {"scores": "(..., n, m)"},
        "Shapes and marginals",
    ),
    "entropic_c_transform": (
        {"scores": "(..., n, m)", "dual": '(..., n) if onto is "key", else (..., m)', **MASKED},
        ["onto", "epsilon"],
        {"out": '(..., m) if onto is "key", else (..., n)'},
        "Sinkhorn",
    ),
    "transport_plan": (
        {"scores": "(..., n, m)", "query_dual": "(..., n)", "key_dual": "(..., m)", **MASKED},
        ["epsilon"],
        {"plan": "(..., n, m)"},
        "Shapes and marginals",
    ),
    "two_sided_c_transform": (
        {"scores": "(..., n, m)", "query_dual": "(..., n)", **MASKED},
        ["epsilon"],
        {"query_dual": "(..., n)", "key_dual": "(..., m)"},
        "Two-sided entropic c-transform, and why it is cheap",
    ),
    "marginal_error": (
        {"plan": "(..., n, m)", **MASKED},
        [],
        {"row_error": "(...)", "column_error": "(...)"},
        "Shapes and marginals",
    ),
    "sinkhorn": (
        {"scores": "(..., n, m)", "init": "(..., n), optional", **MASKED},
        ["n_iter", "epsilon"],
        {"query_dual": "(..., n)", "key_dual": "(..., m)"},
        "Sinkhorn",
    ),
    "kantorovich_potentials_1d": (
        {
            "x": "(..., n)",
            "y": "(..., m)",
            "x_weights": "(..., n), optional",
            "y_weights": "(..., m), optional",
            "x_mask": "(..., n) boolean, optional",
            "y_mask": "(..., m) boolean, optional",
        },
        ["cost"],
        {"phi": "(..., n)", "psi": "(..., m)"},
        "Exact 1D Kantorovich potentials",
    ),
    "slice_directions": ({}, ["dim", "n_slices", "kind", "seed"], {"directions": "(dim, n_slices)"}, "Slices"),
    "sliced_potentials": (
        {"q": "(..., n, d)", "k": "(..., m, d)", "directions": "(d, L)", **MASKED},
        [],
        {"phi": "(..., L, n)", "psi": "(..., L, m)"},
        "Slices",
    ),
    "dual_features": (
        {"q": "(..., n, d)", "k": "(..., m, d)", "directions": "(d, L)", "basis": "(d, r), optional", **MASKED},
        ["cumulants"],
        {"features": "(..., F, n)"},
        "Slices",
    ),
    "amortized_query_dual": (
        {"q": "(..., H, n, d)", "k": "(..., H, m, d)", **AMORTIZED, **MASKED},
        ["cumulants"],
        {"query_dual": "(..., H, n)"},
        "The amortizer: query-side dual from features",
    ),
    "softmax_attention": ({**ATTENTION, **MASKED}, [], {"out": "(..., n, p)"}, "Sinkhorn"),
    "sinkhorn_attention": ({**ATTENTION, **MASKED}, ["n_iter", "epsilon"], {"out": "(..., n, p)"}, "Sinkhorn"),
    "sliced_attention": (
        {**ATTENTION, "directions": "(d, L), optional", **MASKED},
        ["temperature", "inverse_temperature", "hard"],
        {"out": "(..., n, p)"},
        "Sliced-transport attention (the ESPFormer baseline)",
    ),
    "asap_attention": (
        {"q": "(..., H, n, d)", "k": "(..., H, m, d)", "v": "(..., H, m, p)", **AMORTIZED, **MASKED},
        ["cumulants", "epsilon", "refine"],
        {"out": "(..., H, n, p)"},
        "Two-sided entropic c-transform, and why it is cheap",
    ),
    "kl_loss": (
        {"scores": "(..., n, m)", "query_dual": "(..., n)", "teacher_columns": "(..., m)", **MASKED},
        ["epsilon"],
        {"loss": "(...)"},
        "The amortizer: query-side dual from features",
    ),
    "dual_loss": (
        {"scores": "(..., n, m)", "query_dual": "(..., n)", **MASKED},
        ["epsilon"],
        {"loss": "(...)"},
        "The amortizer: query-side dual from features",
    ),
    "fit_amortizer": (
        {"q": "(batch, H, n, d)", "k": "(batch, H, m, d)", "directions": "(d, L)"},
        ["n_iter", "epsilon", "ridge", "cumulants"],
        {"weights": "(H, F)", "r_squared": "(H,)"},
        "The amortizer: query-side dual from features",
    ),
    "training_trace": (
        {
            "images": "(steps, B, size, size)",
            "labels": "(steps, B) integer",
            "learning_rates": "(steps,)",
            **PARAMETERS,
        },
        [*MODEL, "weight_decay", "betas", "adam_epsilon"],
        {"losses": "(steps,)", "gradient_norms": "(steps,)"},
        "The training trace",
    ),
    "compile_model": (
        {"images": "(B, size, size)", "directions": "(d, L)", **PARAMETERS},
        [*MODEL, "ridge", "cumulants"],
        {"weights": "(layers, H, F)", "teacher_logits": "(B, classes)", "compiled_logits": "(B, classes)"},
        "The training trace",
    ),
}
