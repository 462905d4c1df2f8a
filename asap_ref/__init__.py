"""ASAP: amortized doubly-stochastic attention via sliced dual projection, a readable reference.

Read the modules in this order: arrays, transport, sinkhorn, potentials, slices, features, amortizer,
calibration, attention, layers, transformer, training, compilation. The attentions exported here are the fast
ones of fused.py; those of attention.py say the same in the plainest way, and are the definition.
"""

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.calibration.recalibration import recalibrate
from asap_ref.extensions import Cumulants, Moments, Quadratic
from asap_ref.extensions.mixed_heads import mixed_attention, mixed_attention_vjp
from asap_ref.fast.attention import (
    asap_attention,
    asap_attention_vjp,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    softmax_attention,
    softmax_attention_vjp,
)
from asap_ref.fidelity.drift import Drift, detect_drift
from asap_ref.fidelity.report import FidelityReport, fidelity_report
from asap_ref.method.amortizer import Amortizer, amortized_query_dual, amortized_query_dual_vjp
from asap_ref.method.features import Family, Slices, dual_features, dual_features_vjp
from asap_ref.method.potentials import kantorovich_potentials_1d, kantorovich_potentials_1d_vjp
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.sinkhorn import sinkhorn, sinkhorn_vjp
from asap_ref.method.slices import slice_directions, sliced_potentials, sliced_potentials_vjp
from asap_ref.method.transport import (
    Duals,
    attention_scores,
    attention_scores_vjp,
    entropic_c_transform,
    entropic_c_transform_vjp,
    marginal_error,
    transport_plan,
    transport_plan_vjp,
    two_sided_c_transform,
    two_sided_c_transform_vjp,
)
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.rivals.initial_duals import fast_initial_attention as initial_attention
from asap_ref.rivals.initial_duals import initial_attention_vjp, initial_dual, initial_dual_vjp
from asap_ref.rivals.one_sided import fast_one_sided_attention as one_sided_attention
from asap_ref.rivals.one_sided import one_sided_attention_vjp
from asap_ref.rivals.sliced_attention import sliced_attention, sliced_attention_vjp
from asap_ref.rivals.soft_sort import soft_sort, soft_sort_vjp
from asap_ref.support.arrays import array_module, array_namespace, to_numpy

__all__ = [
    "Amortizer",
    "Attention",
    "Cumulants",
    "Drift",
    "Duals",
    "Family",
    "FidelityReport",
    "Moments",
    "Quadratic",
    "Slices",
    "SufficientStatistics",
    "amortized_query_dual",
    "amortized_query_dual_vjp",
    "array_module",
    "array_namespace",
    "asap_attention",
    "asap_attention_vjp",
    "attention_scores",
    "attention_scores_vjp",
    "compile_model",
    "detect_drift",
    "dual_features",
    "dual_features_vjp",
    "entropic_c_transform",
    "entropic_c_transform_vjp",
    "fidelity_report",
    "fit_amortizer",
    "initial_attention",
    "initial_attention_vjp",
    "initial_dual",
    "initial_dual_vjp",
    "kantorovich_potentials_1d",
    "kantorovich_potentials_1d_vjp",
    "marginal_error",
    "mixed_attention",
    "mixed_attention_vjp",
    "one_sided_attention",
    "one_sided_attention_vjp",
    "recalibrate",
    "sinkhorn",
    "sinkhorn_attention",
    "sinkhorn_attention_vjp",
    "sinkhorn_vjp",
    "slice_directions",
    "sliced_attention",
    "sliced_attention_vjp",
    "sliced_potentials",
    "sliced_potentials_vjp",
    "soft_sort",
    "soft_sort_vjp",
    "softmax_attention",
    "softmax_attention_vjp",
    "to_numpy",
    "transport_plan",
    "transport_plan_vjp",
    "two_sided_c_transform",
    "two_sided_c_transform_vjp",
]
