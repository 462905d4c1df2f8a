"""The public names in the order in which one reads them: [(title, what they are, names)]. A VJP follows by itself."""

GROUPS = [
    (
        "Transport",
        "Scores, duals, plans, and the half steps between them: `asap_ref.method.transport`.",
        [
            "attention_scores",
            "Duals",
            "transport_plan",
            "entropic_c_transform",
            "two_sided_c_transform",
            "marginal_error",
        ],
    ),
    (
        "Sinkhorn",
        "The loop that ASAP leaves out: `asap_ref.method.sinkhorn`.",
        ["sinkhorn", "over_relaxed_dual"],
    ),
    (
        "Slices and potentials",
        "Transport on a line is exact: `asap_ref.method.potentials` and `asap_ref.method.slices`.",
        ["kantorovich_potentials_1d", "slice_directions", "sliced_potentials"],
    ),
    (
        "Features and amortizer",
        "From slices to the query dual: `asap_ref.method.features`, `asap_ref.method.amortizer`, "
        "and families beyond the paper in `asap_ref.extensions`.",
        [
            *("Family", "Slices", "Cumulants", "Quadratic", "Moments", "OnePass", "dual_features"),
            *("amortized_query_dual", "Amortizer", "SufficientStatistics"),
        ],
    ),
    (
        "Attentions",
        "Softmax, Sinkhorn and ASAP, in the fast forms: `asap_ref.fast.attention`.",
        ["softmax_attention", "sinkhorn_attention", "asap_attention", "mixed_attention"],
    ),
    (
        "Rivals",
        "Other people's attentions and duals, to compare with: `asap_ref.rivals`.",
        [
            *(
                "sliced_attention",
                "soft_sort",
                "one_sided_attention",
                "initial_dual",
                "initial_attention",
            ),
            *("over_relaxed_attention", "dual_softmax_attention"),
        ],
    ),
    (
        "Calibration",
        "Weights from data: `asap_ref.calibration`.",
        ["fit_amortizer", "recalibrate"],
    ),
    (
        "Models",
        "A Transformer without autograd, trained with one attention and compiled into another: `asap_ref.model`.",
        [
            *(
                "Architecture",
                "Attention",
                "Transformer",
                "Sequences",
                "TrainingSettings",
                "train",
                "predict",
                "accuracy",
            ),
            *("compile_model", "load_model"),
        ],
    ),
    (
        "Fidelity",
        "How faithful a compiled model is, and whether data have drifted: `asap_ref.fidelity`.",
        ["fidelity_report", "FidelityReport", "detect_drift", "Drift"],
    ),
    (
        "Arrays",
        "Which module an array is of: `asap_ref.support.arrays`.",
        ["array_namespace", "array_module", "to_numpy"],
    ),
]
