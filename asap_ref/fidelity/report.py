"""How faithful a compiled model is to its Sinkhorn teacher: each layer, each head, on data of your choice.

    r_squared               share of the closure-ready dual's variance that the prediction explains
    plan_kl                 KL(P_teacher || P_compiled) a query, in nats
    output_error            |out - out_teacher| / |out_teacher| of the attention output, Frobenius norms over all data
    column_error            mean distance of the plan's column sums from n'/m'
    equivalent_iterations   Sinkhorn iterations from a zero dual that come as close to the teacher's plan (median)
    score_range             largest minus smallest score of a sequence, over epsilon (mean)
    iterations              how many the teacher would need for column sums within 0.05 (hardness.py)

Both attentions see the teacher's own q, k, v, so an error in one layer does not blur the next.

Shapes: q (B, H, n, d), k (B, H, m, d), v (B, H, m, p), plan (B, H, n, m).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from asap_ref.extensions.mixed_heads import pick_heads, pick_mask
from asap_ref.fidelity.diagnostics import equivalent_iterations
from asap_ref.fidelity.hardness import hardness, score_range
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores
from asap_ref.model.measures import as_float64, column_distance, plan_of, root_of_ratio, valid_tokens
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import check_model, record
from asap_ref.support import files
from asap_ref.support.arrays import array_namespace, count_of, to_numpy
from asap_ref.support.masks import centred
from asap_ref.support.settings import check_count
from asap_ref.support.tables import html_table, markdown_table
from asap_ref.support.trees import EqualByValue

COLUMNS = {
    "layer": ("layer", "d"),
    "head": ("head", "d"),
    "attention": ("attention", ""),
    "r_squared": ("R² of the dual", ".3f"),
    "plan_kl": ("plan KL", ".2g"),
    "output_error": ("output error", ".3f"),
    "column_error": ("column error", ".3f"),
    "equivalent_iterations": ("equivalent Sinkhorn iterations", ".0f"),
    "score_range": ("score range / epsilon", ".0f"),
    "iterations": ("iterations the teacher would need", "d"),
}
SAMPLES = ("output_error", "column_error", "dual_error", "score_range")  # also kept sequence by sequence


@dataclass(frozen=True, eq=False)
class FidelityReport(EqualByValue):
    """Rows, one a layer and head, and what each was a mean of, one number a sequence, for tests of drift.

    Examples
    --------
    >>> from asap_ref import Attention, Transformer, Architecture, compile_model
    >>> teacher = Transformer.create(Architecture(n_layers=1), Attention("sinkhorn", {"n_iter": 3}))
    >>> images = np.random.default_rng(0).standard_normal((20, 8, 8))
    >>> compiled, _ = compile_model(teacher, [images], n_slices=4)
    >>> report = fidelity_report(compiled, images)
    >>> report  # report.markdown() has the numbers; a notebook shows them as a table
    <FidelityReport: layers 1, heads 12, sequences 20, output error 0.003 to 0.011>
    """

    rows: list  # of dict, with the keys of COLUMNS
    samples: dict  # name of SAMPLES -> (B, layers, H), NaN where a head makes no prediction

    def __repr__(self):
        if not self.rows:
            return "<FidelityReport of nothing>"
        sequences, layers, heads = self.samples["output_error"].shape
        errors = [row["output_error"] for row in self.rows]
        sizes = f"layers {layers}, heads {heads}, sequences {sequences}"
        return f"<FidelityReport: {sizes}, output error {min(errors):.3f} to {max(errors):.3f}>"

    def _repr_html_(self):
        return html_table(self.table(), repr(self)[1:-1])

    def markdown(self) -> str:
        """Write the rows as a table."""
        return markdown_table(self.table())

    def table(self) -> list[list[str]]:
        """Rows of cells, the first of which is the head."""
        lines = [[title for title, _ in COLUMNS.values()]]
        for row in self.rows:
            lines.append(
                ["" if row[key] is None else format(row[key], style) for key, (_, style) in COLUMNS.items()]
            )
        return lines

    def worse_than(self, output_error) -> list[tuple[int, int]]:
        """List the (layer, head) whose output error is larger, the worst first."""
        worst = sorted(self.rows, key=lambda row: -row["output_error"])
        return [(row["layer"], row["head"]) for row in worst if row["output_error"] > output_error]

    def draw(self, stem) -> list[Path]:
        """Draw output error against how hard a head is, and error by sequence; return the paths written."""
        from asap_ref.support import presentation

        fig, axes = presentation.subplots(1, 2, figsize=(10, 4))
        errors = self.samples["output_error"]  # (B, layers, H)
        for row in self.rows:
            colour = presentation.COLOURS["sinkhorn" if row["attention"] == "sinkhorn" else "asap"]
            marker = "os^Dv"[row["layer"] % 5]
            size = max(row["output_error"], 1e-4)
            axes[0].plot(row["iterations"], size, marker, color=colour)
            label = f"{row['layer']}.{row['head']}"
            offset = dict(xytext=(5, 4), textcoords="offset points", fontsize=8.5)
            axes[0].annotate(label, (row["iterations"], size), **offset)
        axes[0].set(
            xlabel="iterations the teacher would need",
            ylabel="attention output error (relative)",
            yscale="log",
        )
        axes[0].margins(x=0.15, y=0.15)
        of_heads = np.maximum(errors.reshape(len(errors), -1), 1e-4)
        axes[1].boxplot(of_heads, showfliers=False, medianprops={"color": presentation.COLOURS["asap"]})
        names = [f"{row['layer']}.{row['head']}" for row in self.rows]
        axes[1].set_xticks(range(1, len(names) + 1), names, fontsize=8.5)
        axes[1].set(xlabel="layer.head", ylabel="output error of a sequence", yscale="log")
        fig.suptitle(
            "Fidelity to the Sinkhorn teacher, head by head (layer.head; a marker shape a layer)\n"
            "left: hard heads are to the right, bad ones at the top; right: spread over sequences",
            fontsize=11,
        )
        return presentation.save(fig, stem)

    def write(self, stem) -> list[Path]:
        """Write table, picture and report: stem.md, .svg, .png and .npz; return the paths."""
        table, record = Path(f"{stem}.md"), Path(f"{stem}.npz")
        files.save_text(table, self.markdown())
        self.save(record)
        return [table, *self.draw(stem), record]

    def save(self, path) -> None:
        """Write the report as .npz, atomically."""
        files.save(path, "fidelity", {"samples": self.samples}, {"rows": self.rows})

    @classmethod
    def load(cls, path) -> FidelityReport:
        """Read a report that `save` wrote."""
        return files.load(path, "fidelity", lambda arrays, settings: cls(settings["rows"], arrays["samples"]))


def fidelity_report(compiled, inputs, *, teacher=None, most=50):
    """Report how faithful each head of a compiled model is to the teacher.

    Parameters
    ----------
    compiled : Transformer
        As from `compile_model`.
    inputs : NumPy inputs, or a list of batches of them
        Data that did not calibrate the model, or the report flatters it. Whole plans are formed, of a batch at a time.
    teacher : Transformer, optional
        With Sinkhorn attention; the one that the amortizers of the compiled model name, when not given.
    most : int
        Where to stop counting iterations.

    Returns
    -------
    FidelityReport

    Raises
    ------
    TypeError
        If compiled or teacher is no Transformer, or inputs are no arrays.
    ValueError
        If a layer of the compiled model names no teacher, and none is given, the teacher is of another architecture
        or has other attention than Sinkhorn, or if there are no inputs.

    Notes
    -----
    Cost: O(most n m) for each sequence and head. The measures are ours (derived); their list is on top of the module.

    Examples
    --------
    >>> from asap_ref import Architecture, Transformer, compile_model
    >>> teacher = Transformer.create(Architecture(n_layers=1, n_heads=4), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((2, 32, 8, 8))
    >>> compiled, _ = compile_model(teacher, [images[0]], n_slices=4, quadratic=0)
    >>> report = fidelity_report(compiled, images[1])
    >>> len(report.rows), sorted(report.samples), report.samples["output_error"].shape
    (4, ['column_error', 'dual_error', 'output_error', 'score_range'], (32, 1, 4))
    """
    check_model(compiled, "compiled", "fidelity_report")
    teacher = teacher_of(compiled) if teacher is None else teacher
    check_model(teacher, "teacher", "fidelity_report")
    check_count(most, "most", "fidelity_report", least=1)
    if teacher.architecture != compiled.architecture:
        raise ValueError(
            f"fidelity_report: teacher has {teacher.architecture}, compiled {compiled.architecture}; "
            "give the model that was compiled"
        )
    for layer, attention in enumerate(teacher.attentions):
        if not attention.mechanism.teaches:
            raise ValueError(
                f"fidelity_report: layer {layer} of teacher has {attention.name} attention, expected sinkhorn"
            )
    if not (hasattr(inputs, "__iter__") or hasattr(inputs, "shape")):
        raise TypeError(
            f"fidelity_report: inputs must be an array or a list of arrays, got {type(inputs).__name__}"
        )
    batches = [inputs] if hasattr(inputs, "shape") else list(inputs)
    if not sum(map(count_of, batches)):
        raise ValueError("fidelity_report: inputs is empty; give at least one sequence")
    measured = [measure(teacher, compiled.attentions, batch, most=most) for batch in batches if count_of(batch)]
    by_name = {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
    hard = [hardness(teacher, batch) for batch in batches if count_of(batch)]
    rows, n_heads = [], by_name["output_error"].shape[2]
    for layer, attention in enumerate(compiled.attentions):
        attends = {h: part for part, heads in attention.by_head(n_heads) for h in heads}
        for head in range(n_heads):
            of = {name: x[:, layer, head] for name, x in by_name.items()}
            explained = 1 - of["dual_square"].sum() / max(of["target_square"].sum(), 1e-300)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "attention": attends[head].name,
                    "r_squared": float(explained) if attends[head].mechanism.predicts else None,
                    "plan_kl": float(of["plan_kl"].mean()),
                    "output_error": float(root_of_ratio(of["difference"].sum(), of["size"].sum())),
                    "column_error": float(of["column_error"].mean()),
                    "equivalent_iterations": float(np.median(of["equivalent_iterations"])),
                    "score_range": float(of["score_range"].mean()),
                    "iterations": max(part[layer]["iterations"][head] for part in hard),
                }
            )
    return FidelityReport(rows, {name: by_name[name] for name in SAMPLES})


def teacher_of(compiled):
    """Return the Sinkhorn model that a compiled one stands for: same parameters, iterations named by the amortizers."""
    attentions = []
    for layer, attention in enumerate(compiled.attentions):
        parts = attention.by_head(compiled.architecture.n_heads)
        teachers = [part for part, _ in parts if part.mechanism.teaches]
        amortizers = [part.settings["amortizer"] for part, _ in parts if part.mechanism.predicts]
        if teachers:
            attentions.append(teachers[0])
        elif amortizers:
            settings = {"n_iter": amortizers[0].n_iter, "epsilon": amortizers[0].epsilon}
            attentions.append(Attention("sinkhorn", settings))
        else:
            raise ValueError(
                f"layer {layer} has {attention.name} attention, which no Sinkhorn teacher stands behind"
            )
    return compiled.with_attention(*attentions)


# ---------------------------------------------------------------------------------------------- one batch of data


def measure(teacher, attentions, batch, *, most=50):
    """What a report is made of, sequence by sequence: {name: NumPy (B, layers, H)}."""
    layers = []
    for given, attention, (q, k, v, *masks) in zip(
        teacher.attentions, attentions, record(teacher, batch), strict=True
    ):
        masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
        expected, found = (as_float64(a(q, k, v, **masks)) for a in (given, attention))
        P_expected, P_found = (plan_of(a, q, k, **masks) for a in (given, attention))
        epsilon, S = given.setting("epsilon"), attention_scores(q, k)
        place = partial(array_namespace(S).asarray, dtype=S.dtype, device=S.device)
        valid = valid_tokens(q, masks["query_mask"])
        spread = score_range(S, valid, valid_tokens(k, masks["key_mask"])) / epsilon
        dual_square, target_square, tokens = _dual_error(given, attention, q, k, **masks)
        difference, size = np.sum((found - expected) ** 2, (-2, -1)), np.sum(expected**2, (-2, -1))
        layers.append(
            {
                "difference": difference,
                "size": size,
                "output_error": np.sqrt(difference / np.maximum(size, 1e-300)),
                "column_error": column_distance(P_found.sum(-2), q.shape[-2], **masks),
                "plan_kl": _divergence(P_expected, P_found) / np.maximum(valid.sum(-1), 1),
                "equivalent_iterations": to_numpy(
                    equivalent_iterations(
                        S, place(P_found), place(P_expected), epsilon=epsilon, most=most, **masks
                    )
                ),
                "dual_square": dual_square,
                "target_square": target_square,
                "dual_error": np.sqrt(dual_square / tokens),
                "score_range": spread,
            }
        )
    return {name: np.stack([layer[name] for layer in layers], axis=1) for name in layers[0]}


def _dual_error(teacher, attention, q, k, *, query_mask=None, key_mask=None):
    """|dual - target|², |target|² and tokens of each sequence and head, NumPy (B, H); NaN without a prediction.

    The dual is the one that the attention predicts, the target that of `fit_amortizer`: on exchanged sides both, where
    it is the key dual.
    """
    found = np.full((3, *q.shape[:-2]), np.nan)
    for part, heads in attention.by_head(q.shape[-3]):
        if not part.mechanism.predicts:
            continue
        sides = [(pick_heads(x, heads), pick_mask(mask, heads)) for x, mask in ((q, query_mask), (k, key_mask))]
        (x, mask), (y, other) = sides if part.mechanism.predicts == "query" else reversed(sides)
        masks = {"query_mask": mask, "key_mask": other}
        before = max(teacher.setting("n_iter") - 1, 0)  # iterations of the closure-ready dual
        duals = sinkhorn(attention_scores(x, y), n_iter=before, epsilon=teacher.setting("epsilon"), **masks)
        target = as_float64(centred(duals.query, mask))
        dual = as_float64(part.settings["amortizer"].predict(x, y, **masks))
        tokens = np.maximum(valid_tokens(x, mask).sum(-1), 1)
        found[:, :, list(heads)] = np.sum((dual - target) ** 2, -1), np.sum(target**2, -1), tokens
    return found


def _divergence(P, Q):
    """KL(P || Q) of whole plans, (..., n, m) -> (...)."""
    floor = np.finfo(np.float32).tiny  # where a plan in float32 underflows
    ratio = np.log(np.maximum(P, floor)) - np.log(np.maximum(Q, floor))
    return np.sum(P * ratio, (-2, -1))
