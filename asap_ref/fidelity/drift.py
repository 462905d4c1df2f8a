"""Drift: whether new data treats a compiled model as the data it was reported on did.

Two fidelity reports are compared sequence by sequence: for each layer, head and measure a two-sample
Kolmogorov-Smirnov test, and Holm's correction over all of them, so that the chance of any false alarm is at most
``level``. It holds where the first report is of data that calibrated nothing: on its own calibration data a model
looks better than it is, and any new data then looks worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asap_ref.fidelity.report import FidelityReport
from asap_ref.support.settings import check_positive


@dataclass(frozen=True)
class Drift:
    """Whether there is drift, and the evidence, strongest first.

    Examples
    --------
    >>> print(Drift(False, 0.05, []))
    no drift found (level 0.05)
    """

    drifted: bool
    level: float
    findings: list  # of dict: measure, layer, head, p_value (corrected), before, after (means)

    def __str__(self):
        """Say it in a sentence, with the strongest evidence."""
        if not self.drifted:
            return f"no drift found (level {self.level})"
        found = [finding for finding in self.findings if finding["p_value"] <= self.level]
        first = found[0]
        return (
            f"drift: {len(found)} of {len(self.findings)} measures changed (level {self.level}); most of all the "
            f"{first['measure'].replace('_', ' ')} of layer {first['layer']} head {first['head']}, on the mean from "
            f"{first['before']:.3g} to {first['after']:.3g}"
        )


def detect_drift(before, after, *, level=0.05):
    """Test whether a fidelity report on new data differs from an earlier one.

    Parameters
    ----------
    before, after : FidelityReport
        Of the same compiled model; ``before`` on held-out data like that of the calibration.
    level : float
        Probability of a false alarm, at most, over all heads and measures together.

    Returns
    -------
    Drift

    Raises
    ------
    TypeError, ValueError
        If these are not reports of models of one shape, or level is not between 0 and 1.

    Notes
    -----
    Kolmogorov-Smirnov tests as in `scipy.stats.ks_2samp`; the correction is Holm's (1979), valid whatever the
    dependence between heads. Sequences must be independent of each other. Derived.

    Examples
    --------
    >>> errors = np.random.default_rng(0).lognormal(size=(3, 100, 1, 2))
    >>> first, second, third = (FidelityReport([], {"output_error": x}) for x in errors * [[[[1]]], [[[1]]], [[[2]]]])
    >>> print(detect_drift(first, second))
    no drift found (level 0.05)
    >>> detect_drift(first, third).drifted
    True
    """
    for name, report in (("before", before), ("after", after)):
        if not isinstance(report, FidelityReport):
            raise TypeError(f"detect_drift: {name} must be a FidelityReport, got {type(report).__name__}")
    level = check_positive(level, "level", "detect_drift")
    if level >= 1:
        raise ValueError(f"detect_drift: level must be between 0 and 1, got {level}")
    if before.samples.keys() != after.samples.keys():
        raise ValueError(
            f"detect_drift: before measured {sorted(before.samples)}, after {sorted(after.samples)}; "
            "make both reports with fidelity_report"
        )
    if not before.samples:
        raise ValueError("detect_drift: the reports hold no measures; make them with fidelity_report")
    from scipy.stats import ks_2samp  # here: it takes several times as long to import as all of asap_ref

    findings = []
    for measure, first in before.samples.items():
        second = after.samples[measure]
        if first.shape[1:] != second.shape[1:]:
            raise ValueError(
                f"detect_drift: before has (layers, heads) = {first.shape[1:]}, after {second.shape[1:]}; "
                "they must be reports of the same model"
            )
        if not (len(first) and len(second)):
            raise ValueError(
                f"detect_drift: before is of {len(first)} sequences, after of {len(second)}; at least one is needed"
            )
        for layer, head in np.ndindex(*first.shape[1:]):
            x, y = first[:, layer, head], second[:, layer, head]
            if np.isnan(x).any() or np.isnan(y).any():  # this head predicts nothing
                continue
            findings.append(
                {
                    "measure": measure,
                    "layer": layer,
                    "head": head,
                    "p_value": float(ks_2samp(x, y, method="asymp").pvalue),
                    "before": float(x.mean()),
                    "after": float(y.mean()),
                }
            )
    findings.sort(key=lambda finding: finding["p_value"])
    corrected = 0.0
    for rank, finding in enumerate(findings):
        corrected = max(corrected, min(1.0, (len(findings) - rank) * finding["p_value"]))
        finding["p_value"] = corrected
    return Drift(bool(findings) and findings[0]["p_value"] <= level, level, findings)
