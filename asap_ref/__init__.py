"""ASAP: amortized doubly-stochastic attention via sliced dual projection, a readable reference.

The method is the folder `asap_ref.method`, read in this order: transport, sinkhorn, potentials, slices, features,
amortizer, regression, attention. Whoever has read it has read the paper. The rest, from the bottom up; each folder
imports only from those before it:

    support      array modules, masks, the contracts of arguments, files, tables
    staircase    potentials on the line of samples of unequal size, with weights or padded
    method       the paper
    fast         the same names in less time
    extensions   ours beyond the paper: more families of features, over-relaxation, heads of mixed mechanisms
    rivals       other people's attentions and duals
    calibration  the weights of an amortizer from data
    model        a Transformer without autograd, trained with one attention and compiled into another
    fidelity     how faithful a compiled model is, and whether data have drifted
    lab          experiments and races
    oracle       vectors by which another implementation is checked

Everything exported here takes arrays of NumPy, CuPy, torch, JAX or another module of the array API standard, and
returns such arrays. What an operator f promises about its arguments stands on its ``def`` line, and is checked:
`asap_ref.support.contracts` says how, and which errors there are. ``f_vjp`` takes the same arguments and returns
(value, vjp). The attentions are the fast forms; `help` names the plain definition that each is tested against.
"""

from asap_ref.calibration.amortizer import Amortizer
from asap_ref.calibration.fit import fit_amortizer
from asap_ref.calibration.recalibration import recalibrate
from asap_ref.extensions import Cumulants, Moments, OnePass, Quadratic
from asap_ref.extensions.mixed_heads import mixed_attention, mixed_attention_vjp
from asap_ref.extensions.relaxation import over_relaxed_dual, over_relaxed_dual_vjp
from asap_ref.fast.attention import (
    asap_attention,
    asap_attention_vjp,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    softmax_attention,
    softmax_attention_vjp,
)
from asap_ref.fidelity.diagnostics import marginal_error
from asap_ref.fidelity.drift import Drift, detect_drift
from asap_ref.fidelity.report import FidelityReport, fidelity_report
from asap_ref.method.amortizer import amortized_query_dual, amortized_query_dual_vjp
from asap_ref.method.features import Slices, dual_features, dual_features_vjp
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
    transport_plan,
    transport_plan_vjp,
    two_sided_c_transform,
    two_sided_c_transform_vjp,
)
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.sequences import Sequences
from asap_ref.model.training import accuracy, predict, train
from asap_ref.model.transformer import Transformer, load_model
from asap_ref.rivals.dual_softmax import dual_softmax_attention_vjp
from asap_ref.rivals.dual_softmax import fast_dual_softmax_attention as dual_softmax_attention
from asap_ref.rivals.initial_duals import fast_initial_attention as initial_attention
from asap_ref.rivals.initial_duals import initial_attention_vjp, initial_dual, initial_dual_vjp
from asap_ref.rivals.one_sided import fast_one_sided_attention as one_sided_attention
from asap_ref.rivals.one_sided import one_sided_attention_vjp
from asap_ref.rivals.over_relaxed import fast_over_relaxed_attention as over_relaxed_attention
from asap_ref.rivals.over_relaxed import over_relaxed_attention_vjp
from asap_ref.rivals.sliced_attention import sliced_attention, sliced_attention_vjp
from asap_ref.rivals.soft_sort import soft_sort, soft_sort_vjp
from asap_ref.support.arrays import array_module, array_namespace, to_numpy
from asap_ref.support.family import Family

__version__ = "0.1.0"

__all__ = [
    "Amortizer",
    "Architecture",
    "Attention",
    "Cumulants",
    "Drift",
    "Duals",
    "Family",
    "FidelityReport",
    "Moments",
    "OnePass",
    "Quadratic",
    "Sequences",
    "Slices",
    "SufficientStatistics",
    "TrainingSettings",
    "Transformer",
    "accuracy",
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
    "dual_softmax_attention",
    "dual_softmax_attention_vjp",
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
    "load_model",
    "marginal_error",
    "mixed_attention",
    "mixed_attention_vjp",
    "one_sided_attention",
    "one_sided_attention_vjp",
    "over_relaxed_attention",
    "over_relaxed_attention_vjp",
    "over_relaxed_dual",
    "over_relaxed_dual_vjp",
    "predict",
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
    "train",
    "transport_plan",
    "transport_plan_vjp",
    "two_sided_c_transform",
    "two_sided_c_transform_vjp",
]
