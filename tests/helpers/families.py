"""Features and the predicted dual as functions of arrays alone: what checks of gradients, masks and modules want."""

import asap_ref as ar
from asap_ref.support.trees import leaves


def families(directions, *, cumulants=True, basis=None, moments=False):
    """The families that 0.1 and the oracle know, in the order of their features."""
    found = [ar.Slices(directions)]
    found += [ar.Cumulants()] if cumulants else []
    found += [ar.Quadratic(basis)] if basis is not None else []
    found += [ar.Moments(basis)] if moments else []
    return tuple(found)


def _split(settings):
    own = {name: value for name, value in settings.items() if name in ("cumulants", "basis", "moments")}
    return own, {name: value for name, value in settings.items() if name not in own}


def dual_features(q, k, directions, **settings):
    """Features (..., F, n) of families by name."""
    own, masks = _split(settings)
    return ar.dual_features(q, k, families(directions, **own), **masks)


def dual_features_vjp(q, k, directions, **settings):
    """Features and ``vjp(d_features) -> (d_q, d_k, d_directions)``."""
    own, masks = _split(settings)
    features, vjp = ar.dual_features_vjp(q, k, families(directions, **own), **masks)
    return features, lambda d: flat_gradients(vjp(d))


def amortized_query_dual(q, k, directions, weights, **settings):
    """Predicted dual (..., H, n) of families by name."""
    own, masks = _split(settings)
    return ar.amortized_query_dual(q, k, families(directions, **own), weights, **masks)


def amortized_query_dual_vjp(q, k, directions, weights, **settings):
    """Predicted dual and ``vjp(d_dual) -> (d_q, d_k, d_directions, d_weights)``."""
    own, masks = _split(settings)
    dual, vjp = ar.amortized_query_dual_vjp(q, k, families(directions, **own), weights, **masks)
    return dual, lambda d: flat_gradients(vjp(d))


def flat_gradients(gradients):
    """(d_q, d_k, d_families, ...) with the arrays of the families in a row."""
    d_q, d_k, d_families, *others = gradients
    return (d_q, d_k, *(leaf for family in d_families for leaf in leaves(family)), *others)
