"""A small Transformer without autograd: pure functions on nested dicts, read from the bottom up.

    transformer = embed -> block x n_layers -> norm -> head on the class token
    block       = x + heads(norm(x)), then x + mlp(norm(x))                   pre-norm

The attention is an argument, one for each layer. The output is read off a class token: mean pooling would
cancel doubly-stochastic attention, since ``mean_i sum_j P_ij v_j = mean_j v_j`` when columns of P sum to one.

Shapes: B sequences, n tokens, width w, H heads of dimension d = w / H.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from asap_ref.model.embedding import embed_vjp
from asap_ref.model.inputs import check_host_inputs, checked_inputs
from asap_ref.model.layers import layer_norm, layer_norm_vjp, linear, linear_vjp, mlp, mlp_vjp, named
from asap_ref.model.mechanism import Attention
from asap_ref.support import files, trees
from asap_ref.support.arrays import array_module, array_namespace, from_numpy, is_array
from asap_ref.support.contracts import operator
from asap_ref.support.settings import check_count, check_seed

# ------------------------------------------------------------------------- attention heads: (B, n, w) -> (B, n, w)


def split_heads(x, n_heads):
    """Cut the width into heads: (B, n, w) -> (B, H, n, d)."""
    xp = array_namespace(x)
    b, n, w = x.shape
    return xp.permute_dims(xp.reshape(x, (b, n, n_heads, w // n_heads)), (0, 2, 1, 3))


def merge_heads(x):
    """Put heads side by side again: (B, H, n, d) -> (B, n, w)."""
    xp = array_namespace(x)
    b, h, n, d = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (b, n, h * d))


def split_qkv(qkv, n_heads):
    """Queries, keys and values of each head: (B, n, 3w) -> three of (B, H, n, d)."""
    w = qkv.shape[-1] // 3
    return [split_heads(qkv[..., i * w : (i + 1) * w], n_heads) for i in range(3)]


def heads(x, params, attention, n_heads, mask):
    """Multi-head self-attention: project to q, k, v, attend head by head, project back."""
    q, k, v = split_qkv(linear(x, **params["qkv"]), n_heads)
    return linear(merge_heads(attention(q, k, v, query_mask=mask, key_mask=mask)), **params["out"])


def heads_vjp(x, params, attention, n_heads, mask):
    """Multi-head self-attention and its VJP, ``vjp(d_out) -> (dx, d_params)``."""
    xp = array_namespace(x)
    qkv, qkv_vjp = linear_vjp(x, **params["qkv"])
    mixed, attention_vjp = attention.vjp(*split_qkv(qkv, n_heads), query_mask=mask, key_mask=mask)
    out, out_vjp = linear_vjp(merge_heads(mixed), **params["out"])

    def vjp(d_out):
        d_merged, *d_out_params = out_vjp(d_out)
        d_qkv = attention_vjp(split_heads(d_merged, n_heads))  # dq, dk, dv
        d_qkv = xp.concat([merge_heads(d) for d in d_qkv], axis=-1)
        dx, *d_qkv_params = qkv_vjp(d_qkv)
        return dx, {"qkv": named(d_qkv_params, "weight", "bias"), "out": named(d_out_params, "weight", "bias")}

    return out, vjp


# ---------------------------------------------------------------------------------- block: (B, n, w) -> (B, n, w)


def block(x, params, attention, n_heads, mask):
    """One pre-norm block: attention, then MLP, each added to what came in."""
    x = x + heads(layer_norm(x, **params["norm1"]), params["heads"], attention, n_heads, mask)
    return x + mlp(layer_norm(x, **params["norm2"]), params["mlp"])


def block_vjp(x, params, attention, n_heads, mask, noise=None):
    """One block and its VJP, ``vjp(d_out) -> (dx, d_params)``: a residual adds its gradient to the branch's.

    Noise, {"heads": ..., "mlp": ...}, multiplies what the two branches write (dropout, in training).
    """
    normed1, norm1_vjp = layer_norm_vjp(x, **params["norm1"])
    mixed, heads_backward = heads_vjp(normed1, params["heads"], attention, n_heads, mask)
    y = x + times(mixed, noise, "heads")
    normed2, norm2_vjp = layer_norm_vjp(y, **params["norm2"])
    changed, mlp_backward = mlp_vjp(normed2, params["mlp"])

    def vjp(d_out):
        d_normed2, d_mlp = mlp_backward(times(d_out, noise, "mlp"))
        dy, *d_norm2 = norm2_vjp(d_normed2)
        dy = dy + d_out
        d_normed1, d_heads = heads_backward(times(dy, noise, "heads"))
        dx, *d_norm1 = norm1_vjp(d_normed1)
        return dx + dy, {
            "norm1": named(d_norm1, "gain", "bias"),
            "heads": d_heads,
            "norm2": named(d_norm2, "gain", "bias"),
            "mlp": d_mlp,
        }

    return y + times(changed, noise, "mlp"), vjp


def times(x, noise, name):
    """Multiply by the noise of that name, if there is noise."""
    return x if noise is None else x * noise[name]


# --------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Transformer: on text if it has a vocabulary, else on images.

    Text is token ids below ``vocabulary``, at most ``length`` a sequence, 0 for padding; an image is cut into
    square patches of ``patch`` pixels a side.

    Examples
    --------
    >>> Architecture(image=(8, 8), patch=2).n_tokens, Architecture(vocabulary=1000, length=30).n_tokens
    (17, 31)
    """

    image: tuple[int, int] = (8, 8)
    patch: int = 2
    vocabulary: int | None = None
    length: int | None = None
    n_classes: int = 10
    width: int = 48
    n_layers: int = 2
    n_heads: int = 12
    mlp_ratio: int = 2

    def __post_init__(self):
        text = () if self.vocabulary is None else ("vocabulary", "length")
        for name in ("patch", "n_classes", "width", "n_layers", "n_heads", "mlp_ratio", *text):
            value = check_count(getattr(self, name), name, "Architecture", least=1)
            object.__setattr__(self, name, value)  # Python's own numbers, which a file can hold
        if self.vocabulary is None and self.length is not None:
            raise ValueError(f"Architecture: length {self.length} is of texts; give their vocabulary as well")
        if not isinstance(self.image, tuple | list) or len(self.image) != 2:
            raise TypeError(f"Architecture: image must be (height, width), got {self.image!r:.60}")
        image = tuple(check_count(side, "image", "Architecture", least=1) for side in self.image)
        object.__setattr__(self, "image", image)
        if self.width % self.n_heads:
            raise ValueError(f"Architecture: width {self.width} is not a multiple of n_heads {self.n_heads}")
        if any(side % self.patch for side in self.image):
            raise ValueError(f"Architecture: image {self.image} cannot be cut into patches of {self.patch}")

    @property
    def n_tokens(self):
        """Tokens of a sequence, at most, the class token included."""
        if self.vocabulary is not None:
            return 1 + self.length
        return 1 + (self.image[0] // self.patch) * (self.image[1] // self.patch)


def initialise(architecture, *, seed=0, dtype=np.float32):
    """Draw parameters: a nested dict of NumPy arrays.

    Weights are normal with variance 1 / fan-in, the two that write to the residual stream also divided by
    the root of their number (2 n_layers), as in GPT-2; biases are 0, gains 1. In images positions and class
    token start at twice the size of a patch: with small ones attention sees pixels long before it sees places,
    and a small data set is learned by heart meanwhile (measured: 94 % against 98 % test accuracy on digits).
    In text words and positions start at a tenth of the class token: a step of AdamW has the same size for every
    entry, so small words are soon what training made them, rare ones too (Reuters R8: 97 % against 95 %).

    Examples
    --------
    >>> params = initialise(Architecture())
    >>> params["block0"]["heads"]["qkv"]["weight"].shape
    (48, 144)
    """
    rng = np.random.default_rng(seed)
    a, w = architecture, architecture.width

    def normal(*shape, scale):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    def affine(fan_in, fan_out, scale=1.0):
        return {
            "weight": normal(fan_in, fan_out, scale=scale * fan_in**-0.5),
            "bias": np.zeros(fan_out, dtype),
        }

    def norm():
        return {"gain": np.ones(w, dtype), "bias": np.zeros(w, dtype)}

    residual = (2 * a.n_layers) ** -0.5
    blocks = {
        f"block{i}": {
            "norm1": norm(),
            "heads": {"qkv": affine(w, 3 * w), "out": affine(w, w, residual)},
            "norm2": norm(),
            "mlp": {"up": affine(w, a.mlp_ratio * w), "down": affine(a.mlp_ratio * w, w, residual)},
        }
        for i in range(a.n_layers)
    }
    is_image = a.vocabulary is None
    embedding = {
        **({"patch": affine(a.patch**2, w)} if is_image else {"word": normal(a.vocabulary, w, scale=0.1)}),
        "class_token": normal(w, scale=2.0 if is_image else 1.0),
        "position": normal(a.n_tokens, w, scale=2.0 if is_image else 0.1),
    }
    return {"embedding": embedding, **blocks, "norm": norm(), "head": affine(w, a.n_classes)}


@operator
def transformer(params: "...", inputs: "...", architecture, attentions):
    """Logits of a batch: images (B, height, width) or token ids (B, n) -> (B, n_classes).

    Parameters
    ----------
    params : nested dict of arrays
        As from `initialise`, in the module and dtype of the inputs.
    inputs : array (B, height, width), or integer array (B, n) of token ids, 0 where a text is padded
    architecture : Architecture
    attentions : sequence of Attention
        One for each layer.

    Raises
    ------
    TypeError, ValueError
        On wrong shapes or dtypes, a wrong number of attentions, or non-finite input.
    """
    inputs = checked_inputs(inputs, architecture, attentions)
    x, mask, _ = embed_vjp(params["embedding"], inputs, architecture)
    for i, attention in enumerate(attentions):
        x = block(x, params[f"block{i}"], attention, architecture.n_heads, mask)
    return linear(layer_norm(x[:, 0, :], **params["norm"]), **params["head"])


@operator
def transformer_vjp(params: "...", inputs: "...", architecture, attentions, *, noise=None):
    """Logits and their VJP in the parameters, ``vjp(d_logits) -> d_params``, a dict like params.

    Noise, as from `training.dropout_noise`, multiplies the embedded tokens and what each branch of a block writes.
    """
    xp = array_namespace(inputs)
    inputs = checked_inputs(inputs, architecture, attentions)
    x, mask, embed_backward = embed_vjp(params["embedding"], inputs, architecture)
    x, backward = times(x, noise, "embedding"), {}
    for i, attention in enumerate(attentions):
        block_noise = None if noise is None else noise[f"block{i}"]
        block_params = params[f"block{i}"]
        x, backward[f"block{i}"] = block_vjp(x, block_params, attention, architecture.n_heads, mask, block_noise)
    normed, norm_vjp = layer_norm_vjp(x[:, 0, :], **params["norm"])
    logits, head_vjp = linear_vjp(normed, **params["head"])

    def vjp(d_logits):
        d_normed, *d_head = head_vjp(d_logits)
        d_first, *d_norm = norm_vjp(d_normed)
        d_params = {"norm": named(d_norm, "gain", "bias"), "head": named(d_head, "weight", "bias")}
        dx = xp.concat([d_first[:, None, :], xp.zeros_like(x[:, 1:, :])], axis=1)  # only the class token is read
        for name, block_backward in reversed(backward.items()):
            dx, d_params[name] = block_backward(dx)
        d_params["embedding"] = embed_backward(times(dx, noise, "embedding"))
        return {name: d_params[name] for name in params}

    return logits, vjp


@dataclass(frozen=True, eq=False)
class Transformer(trees.EqualByValue):
    """A Transformer with its parameters and the attention of each layer; calling it gives logits.

    Examples
    --------
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> model(np.zeros((2, 8, 8), np.float32)).shape
    (2, 10)
    >>> model
    <Transformer on images of (8, 8): 1 x 12 heads, width 48, 20650 parameters, softmax attention>
    """

    architecture: Architecture
    params: dict
    attentions: tuple

    def __repr__(self):
        a, names = self.architecture, ", ".join(dict.fromkeys(attention.name for attention in self.attentions))
        tokens = f"images of {a.image}" if a.vocabulary is None else f"text of {a.vocabulary} words"
        sizes = f"{a.n_layers} x {a.n_heads} heads, width {a.width}, {trees.count(self.params)} parameters"
        return f"<Transformer on {tokens}: {sizes}, {names} attention>"

    @classmethod
    def create(cls, architecture, attention, *, seed=0, xp=np, dtype=np.float32):
        """Draw a new model with the same attention in every layer, its parameters in the module xp."""
        params = initialise(architecture, seed=check_seed(seed, "Transformer.create"), dtype=dtype)
        if xp is not np:
            params = trees.place(params, xp)
        return cls(architecture, params, (attention,) * architecture.n_layers)

    def __call__(self, inputs):
        """Return the logits (B, n_classes) of inputs in the module of the parameters."""
        return transformer(self.params, inputs, self.architecture, self.attentions)

    def place(self, inputs):
        """Bring inputs of NumPy, or of its own module, to the module and device of the model; images to its dtype."""
        like = self.params["head"]["weight"]
        xp = array_namespace(like)
        if (
            is_array(inputs) and not isinstance(inputs, np.ndarray) and array_namespace(inputs) is xp
        ):  # it is there
            images = self.architecture.vocabulary is None and not xp.isdtype(inputs.dtype, "integral")
            return xp.astype(inputs, like.dtype, copy=False) if images else inputs
        check_host_inputs(inputs, self.architecture)
        if self.architecture.vocabulary is not None:
            return from_numpy(inputs.astype(np.int64), xp, device=like.device)
        if isinstance(like, np.ndarray):  # as they are, where that will do
            return inputs.astype(like.dtype, copy=False)
        return from_numpy(inputs, xp, dtype=like.dtype, device=like.device)

    def with_attention(self, *attentions):
        """Return the same parameters with other attention: one for all layers, or one for each."""
        if len(attentions) == 1:
            attentions = attentions * self.architecture.n_layers
        return replace(self, attentions=tuple(attentions))

    def save(self, path):
        """Write the model, amortizers included, as one .npz, atomically."""
        arrays, attention_settings = {"params": self.params}, []
        for i, attention in enumerate(self.attentions):
            arrays[f"attention{i}"], settings = attention.state()
            attention_settings.append(settings)
        header = {"architecture": asdict(self.architecture), "attentions": attention_settings}
        files.save(path, "transformer", arrays, header)

    @classmethod
    def load(cls, path, *, backend="numpy"):
        """Read a model that `save` wrote, its parameters in the array module of that name."""
        return files.load(path, "transformer", partial(cls.from_state, backend=backend))

    @classmethod
    def from_state(cls, arrays, header, *, backend="numpy"):
        """Rebuild a model from the arrays and settings that `save` writes."""
        saved = enumerate(header["attentions"])
        attentions = tuple(Attention.from_state(arrays.get(f"attention{i}", {}), each) for i, each in saved)
        architecture = dict(header["architecture"])
        architecture["image"] = tuple(architecture["image"])
        params = arrays["params"]
        trees.check_like(params, initialise(Architecture(**architecture)))
        if backend != "numpy":
            params = trees.place(params, array_module(backend))
        return cls(Architecture(**architecture), params, attentions)


def load_model(path, *, backend="numpy"):
    """Read a model that `Transformer.save` wrote, its attentions and amortizers included.

    Parameters
    ----------
    path : path
        An .npz file; nothing in it is executed.
    backend : {"numpy", "cupy", "torch", "jax", "array_api_strict"}
        Where its parameters are put.

    Returns
    -------
    Transformer

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no sound file of a model.

    Examples
    --------
    >>> import tempfile
    >>> model = Transformer.create(Architecture(n_layers=1), Attention("softmax"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.npz")
    ...     load_model(f"{folder}/model.npz")
    <Transformer on images of (8, 8): 1 x 12 heads, width 48, 20650 parameters, softmax attention>
    """
    return Transformer.load(path, backend=backend)
