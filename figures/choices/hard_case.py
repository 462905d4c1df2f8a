"""Where tokens are independent draws, quadratic features beat more slices, and a refining iteration beats both."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from asap_ref import (
    Cumulants,
    Quadratic,
    asap_attention,
    attention_scores,
    fit_amortizer,
    initial_dual,
    sinkhorn,
    sinkhorn_attention,
    softmax_attention,
    transport_plan,
    two_sided_c_transform,
)
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import geometric_mean
from asap_ref.lab.stopwatch import interleaved
from asap_ref.method.features import dual_features
from asap_ref.method.regression import SufficientStatistics
from asap_ref.support import files, presentation
from asap_ref.support.masks import centred
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)  # a layer each
HEADS, TOKENS, WIDTH, N_ITER, RANGE, COMPONENTS = 4, 48, 16, 15, 90.0, 6
TRAIN, TEST, PROBES = 512, 128, 64
TRUNCATED = (1, 2, 3, 4, 5, 6, 8, 10, 12)
QUADRATIC = {"n_slices": 16, "quadratic": WIDTH}
MAPS = {
    "16 slices": {"n_slices": 16, "cumulants": False},
    "64 slices": {"n_slices": 64, "cumulants": False},
    "16 slices + cumulants": {"n_slices": 16},
    "+ quadratic": QUADRATIC,
    "+ quadratic, slices chosen among 64": QUADRATIC | {"candidates": 64},
    "+ moments": QUADRATIC | {"candidates": 64, "moments": WIDTH},
}
BEST = "+ quadratic, slices chosen among 64"
REFINED = {f"{BEST}, refine = {r}": r for r in (1, 2)}
EXTRA = {  # duals that are features too, whatever they cost
    "+ the Gaussian dual": lambda q, k: [initial_dual(q, k, start="gaussian")],
    "+ the duals of T = 0 and 1": lambda q, k: [sinkhorn(attention_scores(q, k), n_iter=t).query for t in (0, 1)],
}


def measure():
    """Fit every map on several layers, and compare on sequences that they have not seen."""
    return {
        "seeds": [of_seed(seed) for seed in SEEDS],
        "settings": {
            "heads": HEADS,
            "tokens": TOKENS,
            "d": WIDTH,
            "n_iter": N_ITER,
            "range": RANGE,
            "components": COMPONENTS,
            "sequences": [TRAIN, TEST],
        },
        "machine": machine(),
    }


def of_seed(seed):
    """Errors and times of one layer."""
    sequences = layer(seed)
    q, k, _ = sequences(TRAIN, 1)
    calls = [(q[i : i + 128], k[i : i + 128]) for i in range(0, TRAIN, 128)]
    test = sequences(TEST, 2)
    S = attention_scores(*test[:2])
    judge = partial(judged, S, test[2], sinkhorn_attention(*test, n_iter=N_ITER))
    rows, racers = [], {"softmax": partial(softmax_attention, *test)}
    for t in (0, *TRUNCATED):
        row = judge(lambda t=t: sinkhorn(S, n_iter=max(t - 1, 0)).query) if t else {}
        row["output_error"] = relative(
            sinkhorn_attention(*test, n_iter=t) if t else softmax_attention(*test), judge.args[2]
        )
        rows.append({"name": f"Sinkhorn, T = {t}", "T": t} | row)
        if t:
            racers[f"Sinkhorn, T = {t}"] = partial(sinkhorn_attention, *test, n_iter=t)
    rows.append({"name": "Gaussian dual"} | judge(lambda: initial_dual(*test[:2], start="gaussian")))
    for name, settings in MAPS.items():
        amortizer = fit_amortizer(calls, n_iter=N_ITER, seed=seed, ridge=1e-4, **settings)
        rows.append({"name": name} | judge(lambda a=amortizer: a.predict(*test[:2])))
        racers[name] = partial(asap_attention, *test, amortizer)
        if name == BEST:
            for told, r in REFINED.items():
                refined = replace(amortizer, refine=r)
                rows.append(
                    {"name": told, "output_error": relative(asap_attention(*test, refined), judge.args[2])}
                )
                racers[told] = partial(asap_attention, *test, refined)
    for name, more in EXTRA.items():
        rows.append({"name": name} | judge(lambda more=more: regressed(more, (q, k), test[:2], seed)))
    seconds = {name: float(np.median(found)) for name, found in interleaved(racers).items()}
    for row in rows:
        row["seconds"] = seconds.get(row["name"] if row.get("T") != 0 else "softmax")
    spans = np.max(S, (-2, -1)) - np.min(S, (-2, -1))
    return {"seed": seed, "range": spans.mean(0).tolist(), "of_a_token": of_a_token(sequences), "rows": rows}


def layer(seed):
    """Make a function of a number of sequences and a seed that draws them: q, k, v of (sequences, heads, tokens, d).

    A token is an independent draw from a mixture of anisotropic normal distributions; a head sees it through random
    matrices, one for queries and one for keys and values, which are other draws than the queries.
    """
    rng = np.random.default_rng(100 + seed)
    centres = rng.standard_normal((COMPONENTS, WIDTH))
    spreads = rng.standard_normal((COMPONENTS, WIDTH, WIDTH)) * np.exp(
        0.7 * rng.standard_normal((COMPONENTS, 1, WIDTH))
    )
    of_queries, of_keys, of_values = rng.standard_normal((3, HEADS, WIDTH, WIDTH)) / np.sqrt(WIDTH)

    def tokens(count, rng):
        which = rng.integers(COMPONENTS, size=(count, TOKENS))
        noise = spreads[which] @ rng.standard_normal((count, TOKENS, WIDTH, 1)) / np.sqrt(WIDTH)
        return (centres[which] + noise[..., 0])[:, None]  # (count, 1, tokens, d)

    def sequences(count, seed, size=1.0):
        rng = np.random.default_rng([seed, 7])
        x, y = tokens(count, rng), tokens(count, rng)
        return size * (x @ of_queries), size * (y @ of_keys), y @ of_values

    S = attention_scores(*sequences(64, 0)[:2])
    size = np.sqrt(RANGE / np.mean(np.max(S, (-2, -1)) - np.min(S, (-2, -1))))
    return partial(sequences, size=size)


def judged(S, v, expected, predict):
    """R² of a query dual, and the relative error of the output that its two-sided transform gives: lists by head."""
    f_hat = predict()
    target = centred(sinkhorn(S, n_iter=N_ITER - 1).query, None)
    left = np.sum((centred(f_hat, None) - target) ** 2, (0, 2)) / np.sum(target**2, (0, 2))
    out = transport_plan(S, two_sided_c_transform(S, f_hat)) @ v
    return {"r_squared": (1 - left).tolist(), "output_error": relative(out, expected)}


def relative(out, expected):
    """Relative error of an output, by head."""
    return np.sqrt(np.sum((out - expected) ** 2, (0, 2, 3)) / np.sum(expected**2, (0, 2, 3))).tolist()


def regressed(more, train, test, seed):
    """Predict from quadratic features, and from duals that another method makes."""
    slices, *_ = fit_amortizer([tuple(x[:2] for x in train)], seed=seed, n_iter=1, n_slices=16).families

    def features(q, k):
        own = dual_features(q, k, [slices, Cumulants(), Quadratic(np.eye(WIDTH))])
        return np.concatenate([own, *(centred(f, None)[:, :, None] for f in more(q, k))], axis=-2)

    target = centred(sinkhorn(attention_scores(*train), n_iter=N_ITER - 1).query, None)
    weights = SufficientStatistics.of(features(*train), target).ridge(1e-4)
    return (weights[:, None] @ features(*test))[..., 0, :]


def of_a_token(sequences):
    """Share of the dual's variance that a function of the query alone could explain, by head: (H,).

    The same queries are put into many sequences. What depends on the query and on the sequence together is beyond
    such a function, however rich.
    """
    q, k, _ = sequences(PROBES, 3)
    probes = q[:, :, 0].copy()  # (PROBES, H, d)
    found = []
    for probe in probes:
        q[:, :, 0] = probe
        f = sinkhorn(attention_scores(q, k), n_iter=N_ITER - 1).query
        found.append(f[..., 0] - f[..., 1:].mean(-1))
    f = np.stack(found)  # (probes, sequences, H)
    f = f - f.mean(0)  # the constant of a sequence is free
    together = f - f.mean(1, keepdims=True)
    return (1 - np.sum(together**2, (0, 1)) / np.sum(f**2, (0, 1))).tolist()


# ---------------------------------------------------------------------------------------------------- presentation


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "hard_case.md"
    files.save_text(table, markdown(record))
    names = [*MAPS, *EXTRA, *REFINED]
    errors = [_error(record, name)[0] for name in names]
    fig, axis = presentation.subplots(figsize=(8.6, 5.4))
    colours = {**dict.fromkeys(MAPS, "asap"), **dict.fromkeys(EXTRA, "warm"), **dict.fromkeys(REFINED, "sliced")}
    places = np.arange(len(names))[::-1]
    axis.barh(places, errors, height=0.6, color=[presentation.COLOURS[colours[name]] for name in names])
    for t in (4, 6, 8, 10):
        error = _error(record, f"Sinkhorn, T = {t}")[0]
        axis.axvline(error, ls="--", lw=1.2, color=presentation.COLOURS["sinkhorn"])
        axis.annotate(f" T = {t}", (error, len(names) - 0.45), ha="left", fontsize=9)
    axis.set_yticks(places, names)
    axis.grid(visible=False, axis="y")
    axis.set(
        xlabel="attention output error; dashed: Sinkhorn cut to T iterations",
        ylabel="map",
        ylim=(-0.6, len(names)),
    )
    return [table, *presentation.save(fig, Path(folder) / "hard_case")]


def markdown(record):
    """Write errors, what they are worth in iterations, and times."""
    s = record["settings"]
    lines = [["attention", "R² of the dual", "output error", "as near as T =", "ms"]]
    for row in record["seeds"][0]["rows"]:
        name = row["name"]
        error, spread = _error(record, name)
        squares = [r["r_squared"] for r in _rows(record, name) if "r_squared" in r]
        seconds = [r["seconds"] for r in _rows(record, name) if r["seconds"] is not None]
        cells = [
            "softmax" if row.get("T") == 0 else name,
            f"{np.mean(squares):.3f}" if squares else "",
            f"{error:.3f} ± {spread:.3f}",
            "" if "T" in row else f"{_worth(record, error):.1f}",
            f"{1000 * np.mean(seconds):.1f}" if seconds else "",
        ]
        lines.append(cells)
    rival = next(t for t in TRUNCATED if _error(record, f"Sinkhorn, T = {t}")[0] < _error(record, BEST)[0])
    seconds = {
        name: np.mean([row["seconds"] for row in _rows(record, name)]) for name in (BEST, f"Sinkhorn, T = {rival}")
    }
    alone = np.mean([seed["of_a_token"] for seed in record["seeds"]])
    plain, quadratic = (_error(record, name)[0] for name in ("64 slices", BEST))
    refined, extra = (_error(record, name)[0] for name in (next(iter(REFINED)), list(EXTRA)[-1]))
    made_on = record["machine"]
    return markdown_table(lines) + (
        f"\nWith quadratic features and 16 chosen slices the error is {quadratic / plain:.2f} of that with 64 plain "
        f"slices. A function of the query alone could explain {100 * alone:.0f} % of the dual's variance (the same "
        "queries put into many sequences), so that every map here already knows more than the token; what is left "
        "depends on which tokens happen to be in the sequence together. An iteration spent on features for that (the "
        f"duals of T = 0 and 1) gives {extra:.3f}, spent on refining the predicted dual {refined:.3f}. On so short "
        f"sequences the better buy is Sinkhorn itself: T = {rival} is nearer than the best plain map, in "
        f"{seconds[f'Sinkhorn, T = {rival}'] / seconds[BEST]:.2f} of its time.\n\n"
        f"{s['heads']} heads of {s['tokens']} tokens, dimension {s['d']}, independent draws from a mixture of "
        f"{s['components']} anisotropic normal distributions, queries other draws than keys; scores span "
        f"{np.mean([seed['range'] for seed in record['seeds']]):.0f} epsilon; teacher T = {s['n_iter']}. Fitted on "
        f"{s['sequences'][0]} sequences, judged on {s['sequences'][1]} others; {len(record['seeds'])} layers, with the "
        f"standard deviation over them; errors: geometric means over heads; R²: means. Time: one forward pass of the "
        f"{s['sequences'][1]} sequences, median of interleaved rounds, {made_on['processor']}, NumPy "
        f"{made_on['numpy']}.\n"
    )


def _rows(record, name):
    return [row for seed in record["seeds"] for row in seed["rows"] if row["name"] == name]


def _error(record, name):
    found = [geometric_mean(row["output_error"]) for row in _rows(record, name)]
    return float(np.mean(found)), float(np.std(found))


def _worth(record, error):
    """Iterations of Sinkhorn that are as near, between two of them on a logarithmic scale."""
    known = [(np.log(_error(record, f"Sinkhorn, T = {t}")[0]), t) for t in (0, *TRUNCATED)]
    return float(np.interp(np.log(error), *zip(*reversed(known), strict=True)))
