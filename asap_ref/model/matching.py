"""Matching two sets of points: one encoder for both, and between them an attention whose plan is the answer.

    x, y = encode(first), encode(second)         the same blocks for both, self-attention within each
    S    = (x W_q) (y W_k)ᵀ / sqrt(w)
    P    = plan(S)                               P_ij: how sure it is that i of the first is j of the second

Softmax gives each point of the first a partner, whoever else wants it; a second marginal keeps two from taking the
same. It is trained on true partners (partners.py).

Points without a partner: with ``bins`` each point of the other set brings a learned token, the *bin*, that takes one
point that nobody else wants. So both sides have n + m tokens, all marginals stay one, and every attention and its
amortizer run as they are. It is the dustbin of SuperGlue (Sarlin et al. 2020), whose one row and column of masses m
and n are these m and n rows and columns of mass one, added up.

Shapes: first (B, n, features), second (B, m, features), width w; plan (B, n, m), of bins too (B, n + m, m + n).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from asap_ref.method.transport import attention_scores_vjp
from asap_ref.model.blocks import block_vjp
from asap_ref.model.embedding import check_vectors
from asap_ref.model.initial import Draw
from asap_ref.model.layers import layer_norm_vjp, linear_vjp, mlp_vjp, named
from asap_ref.model.mechanism import Attention
from asap_ref.model.partners import check_partners, log_plan_loss_vjp, target_of
from asap_ref.model.sequences import Sequences, vectors_and_mask
from asap_ref.support import files, trees
from asap_ref.support.arrays import array_module, array_namespace
from asap_ref.support.contracts import operator
from asap_ref.support.settings import check_count, check_positive
from asap_ref.support.trees import tree_map

SOFTMAX = Attention("softmax")


@dataclass(frozen=True, eq=False)
class Pairs(trees.EqualByValue):
    """Two sets of points an example: each (B, n, features), or `Sequences` of them.

    Examples
    --------
    >>> pairs = Pairs(np.zeros((5, 7, 2)), np.zeros((5, 8, 2)))
    >>> len(pairs[:3]), pairs[:3].second.shape
    (3, (3, 8, 2))
    """

    first: Any
    second: Any

    def __len__(self):
        return self.first.shape[0]

    def __getitem__(self, picked):
        return Pairs(self.first[picked], self.second[picked])

    @property
    def shape(self):
        """Those of the first."""
        return tuple(self.first.shape)


@dataclass(frozen=True)
class MatcherArchitecture:
    """The sizes of a matcher.

    Parameters
    ----------
    features, width, n_layers, n_heads, mlp_ratio : int
        As of `Architecture`: those of the encoder.
    sharpness : float
        Factor on the scores at the start.
    bins : bool
        Whether points may have no partner.

    Examples
    --------
    >>> MatcherArchitecture(n_layers=1).width
    48
    """

    features: int = 2
    width: int = 48
    n_layers: int = 2
    n_heads: int = 4
    mlp_ratio: int = 2
    sharpness: float = 1.0
    bins: bool = False

    length = None  # sets have any size

    def __post_init__(self):
        check_positive(self.sharpness, "sharpness", "MatcherArchitecture")
        for name in ("features", "width", "n_layers", "n_heads", "mlp_ratio"):
            check_count(getattr(self, name), name, "MatcherArchitecture", least=1)
        if self.width % self.n_heads:
            raise ValueError(
                f"MatcherArchitecture: width {self.width} is not a multiple of n_heads {self.n_heads}"
            )


def initialise_matcher(a, *, seed=0, dtype=np.float32):
    """Draw the parameters of a matcher (initial.py): a nested dict of NumPy arrays."""
    draw, w = Draw(seed, dtype), a.width
    return {
        "vector": draw.mlp(a.features, w, w),
        **draw.blocks(a),
        "norm": draw.norm(w),
        "query": draw.affine(w, w, a.sharpness),
        "key": draw.affine(w, w),
        **({"bin": {"query": draw.normal(w, scale=1.0), "key": draw.normal(w, scale=1.0)}} if a.bins else {}),
    }


# ------------------------------------------------------------------------- from two sets of points to queries and keys


def check_pairs(pairs, a):
    """Raise unless these are as many sets as sets, of the architecture's features."""
    for inputs in (pairs.first, pairs.second):
        check_vectors(inputs, a, "matcher")
    if pairs.first.shape[0] != pairs.second.shape[0]:
        raise ValueError(
            f"matcher: {pairs.first.shape[0]} first and {pairs.second.shape[0]} second sets; expected as many"
        )


def encode_vjp(params, inputs, architecture, attention):
    """Tokens (B, n, w) of one set, their mask (B, n) or None, and ``vjp(dx) -> d_params`` of what was used."""
    vectors, mask = vectors_and_mask(inputs)
    x, embed_backward = mlp_vjp(vectors, params["vector"])
    backward = {}
    for i in range(architecture.n_layers):
        over_heads = None if mask is None else mask[:, None, :]
        name = f"block{i}"
        x, backward[name] = block_vjp(x, params[name], attention, architecture.n_heads, over_heads)
    x, norm_vjp = layer_norm_vjp(x, **params["norm"])

    def vjp(dx):
        dx, *d_norm = norm_vjp(dx)
        d_params = {"norm": named(d_norm, "gain", "bias")}
        for name, block_backward in reversed(backward.items()):
            dx, d_params[name] = block_backward(dx)
        _, d_params["vector"] = embed_backward(dx)
        return d_params

    return x, mask, vjp


def queries_and_keys_vjp(params, pairs, architecture, attention):
    """Queries and keys of the closing attention, their masks, and ``vjp(dq, dk) -> d_params``."""
    check_pairs(pairs, architecture)
    x, first_mask, first_vjp = encode_vjp(params, pairs.first, architecture, attention)
    y, second_mask, second_vjp = encode_vjp(params, pairs.second, architecture, attention)
    n, m = x.shape[1], y.shape[1]
    q, query_vjp = linear_vjp(x, **params["query"])
    k, key_vjp = linear_vjp(y, **params["key"])
    xp = array_namespace(q, k)
    masks = first_mask, second_mask
    if architecture.bins:
        q, k = _with_bins(q, params["bin"]["query"], m), _with_bins(k, params["bin"]["key"], n)
        masks = _mask_with_bins(first_mask, second_mask, q, m), _mask_with_bins(second_mask, first_mask, k, n)

    def vjp(dq, dk):
        dx, *d_query = query_vjp(dq[:, :n, :])
        dy, *d_key = key_vjp(dk[:, :m, :])
        d_params = tree_map(lambda one, other: one + other, first_vjp(dx), second_vjp(dy))
        d_params |= {"query": named(d_query, "weight", "bias"), "key": named(d_key, "weight", "bias")}
        if architecture.bins:
            d_bins = xp.sum(dq[:, n:, :], axis=(0, 1)), xp.sum(dk[:, m:, :], axis=(0, 1))
            d_params["bin"] = named(d_bins, "query", "key")
        return {name: d_params[name] for name in params}

    return q, k, masks, vjp


def _with_bins(tokens, bin_token, count):
    """(B, n, w) -> (B, n + count, w)."""
    xp = array_namespace(tokens)
    return xp.concat([tokens, xp.broadcast_to(bin_token, (tokens.shape[0], count, tokens.shape[2]))], axis=1)


def _mask_with_bins(own, other, tokens, count):
    """A bin is real where the point that brings it is: (B, n), (B, count) -> (B, n + count)."""
    if own is None and other is None:
        return None
    xp, (b, total, _) = array_namespace(tokens), tokens.shape
    own, other = (
        xp.ones((b, size), dtype=xp.bool, device=tokens.device) if mask is None else mask
        for mask, size in ((own, total - count), (other, count))
    )
    return xp.concat([own, other], axis=1)


# ------------------------------------------------------------------------------------------------------- the loss


@operator
def matching_loss(params: "...", pairs: "...", partners, architecture, encoder, *, n_iter, epsilon=1.0):
    """Loss of a batch and its gradient in the parameters: (0-d array, nested dict)."""
    check_partners(partners, pairs)
    q, k, masks, vjp = queries_and_keys_vjp(params, pairs, architecture, encoder)
    first_mask, second_mask = (vectors_and_mask(inputs)[1] for inputs in (pairs.first, pairs.second))
    target = target_of(
        partners,
        (pairs.first.shape[1], pairs.second.shape[1]),
        q.dtype,
        bins=architecture.bins,
        first_mask=first_mask,
        second_mask=second_mask,
    )
    scores, scores_vjp = attention_scores_vjp(q, k)
    named_masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
    loss, loss_vjp = log_plan_loss_vjp(scores, target, n_iter=n_iter, epsilon=epsilon, **named_masks)
    return loss, vjp(*scores_vjp(*loss_vjp(1.0)))


# ------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class Matcher(trees.EqualByValue):
    """A matcher with its parameters, the attention of its encoder, and the one that closes it.

    Calling it with `Pairs` gives the plan (B, n, m). ``attentions`` holds the closing one alone, which `compile_model`
    replaces. It trains where that is Sinkhorn's, of which ``n_iter=0`` is the row softmax: with `optimiser.descend`,
    on batches of pairs and partners, as the example does.

    Examples
    --------
    >>> model = Matcher.create(MatcherArchitecture(n_layers=1), Attention("sinkhorn", {"n_iter": 20}))
    >>> points = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(np.float32)
    >>> model(Pairs(points, points)).sum(axis=-1).round(5)[0]
    array([1., 1., 1., 1., 1.], dtype=float32)
    >>> model
    <Matcher of vectors of 2 features: 1 x 4 heads, width 48, 26256 parameters, closed by sinkhorn attention>

    With bins points may have no partner, -1: here the last of five, whose copy is missing.

    >>> from asap_ref.model.optimiser import TrainingSettings, descend
    >>> from asap_ref.model.partners import partners_of
    >>> model = Matcher.create(MatcherArchitecture(n_layers=1, bins=True), Attention("sinkhorn", {"n_iter": 5}))
    >>> def batches(rng):
    ...     for _ in range(4):
    ...         first = rng.standard_normal((16, 5, 2))
    ...         yield (model.place(Pairs(first, first[:, :4])), np.tile([0, 1, 2, 3, -1], (16, 1))), 16
    >>> settings = TrainingSettings(epochs=8)
    >>> trained, history = descend(
    ...     model, batches, lambda model, batch: model.loss_and_gradients(*batch), settings, steps=4, made_by={}
    ... )
    >>> history[-1]["loss"] < history[0]["loss"]
    True
    >>> partners_of(trained(trained.place(Pairs(points, points[:, :4])))).shape
    (3, 5)
    """

    architecture: MatcherArchitecture
    params: dict
    attentions: tuple
    encoder: Attention = SOFTMAX

    def __repr__(self):
        a = self.architecture
        sizes = f"{a.n_layers} x {a.n_heads} heads, width {a.width}, {trees.count(self.params)} parameters"
        return f"<Matcher of vectors of {a.features} features: {sizes}, closed by {self.attentions[0].name} attention>"

    @classmethod
    def create(cls, architecture, attention, *, encoder=SOFTMAX, seed=0, xp=np, dtype=np.float32):
        """Draw a new matcher, its parameters in the module xp."""
        params = initialise_matcher(architecture, seed=seed, dtype=dtype)
        return cls(architecture, params if xp is np else trees.place(params, xp), (attention,), encoder)

    def __call__(self, pairs):
        """Return the plan (B, n, m) between the points of pairs; with bins, a row may sum to less than one."""
        q, k, masks, _ = queries_and_keys_vjp(self.params, pairs, self.architecture, self.encoder)
        xp, (b, keys) = array_namespace(q), k.shape[:2]
        identity = xp.broadcast_to(xp.eye(keys, dtype=q.dtype, device=q.device), (b, 1, keys, keys))
        query_mask, key_mask = (None if mask is None else mask[:, None, :] for mask in masks)
        (attention,) = self.attentions
        plan = attention(q[:, None, :, :], k[:, None, :, :], identity, query_mask=query_mask, key_mask=key_mask)
        return plan[:, 0, : pairs.first.shape[1], : pairs.second.shape[1]]

    def loss_and_gradients(self, pairs, partners):
        """Mean negative log plan at the true pairs, and its gradient in the parameters."""
        (attention,) = self.attentions
        if not attention.mechanism.teaches:
            raise ValueError(
                f"Matcher: it trains through sinkhorn attention (n_iter=0 is softmax), not {attention.name}"
            )
        settings = {name: attention.setting(name) for name in ("n_iter", "epsilon")}
        return matching_loss(self.params, pairs, partners, self.architecture, self.encoder, **settings)

    def place(self, pairs):
        """Bring NumPy pairs to the module, device and dtype of the matcher."""
        like = self.params["norm"]["gain"]
        return Pairs(*(Sequences.placed(inputs, like) for inputs in (pairs.first, pairs.second)))

    def with_attention(self, attention):
        """Return the same matcher, closed by another attention."""
        return replace(self, attentions=(attention,))

    # ------------------------------------------------------------------------------------------------ files

    def save(self, path):
        """Write the matcher, its amortizer included, as one .npz, atomically."""
        arrays = {"params": self.params}
        header = {"architecture": asdict(self.architecture)}
        for name, attention in (("closing", self.attentions[0]), ("encoder", self.encoder)):
            arrays[name], header[name] = attention.state()
        files.save(path, "matcher", arrays, header)

    @classmethod
    def load(cls, path, *, backend="numpy"):
        """Read a matcher that `save` wrote, its parameters in the array module of that name."""

        def rebuilt(arrays, header):
            architecture, params = MatcherArchitecture(**header["architecture"]), arrays["params"]
            trees.check_like(params, initialise_matcher(architecture))
            closing, encoder = (
                Attention.from_state(arrays.get(name, {}), header[name]) for name in ("closing", "encoder")
            )
            params = params if backend == "numpy" else trees.place(params, array_module(backend))
            return cls(architecture, params, (closing,), encoder)

        return files.load(path, "matcher", rebuilt)
