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

from asap_ref.model.embedding import KINDS, embed_vjp
from asap_ref.model.initial import Draw
from asap_ref.model.inputs import check_host_inputs
from asap_ref.model.layers import layer_norm, layer_norm_vjp, linear, linear_vjp, mlp, mlp_vjp, named
from asap_ref.model.mechanism import Attention
from asap_ref.model.sequences import Sequences
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
    """The sizes of a Transformer, and what it reads: images, or text, or sequences of vectors.

    Parameters
    ----------
    image, patch : (int, int), int
        An image (8 x 8, if none is given, in patches of 2) is cut into square patches of ``patch`` pixels a side.
    vocabulary, length : int
        Text is token ids below ``vocabulary``, at most ``length`` a sequence, 0 for padding.
    features, length : int
        Vectors are (batch, n, features), or `Sequences` of them, which have a mask. With a ``length`` they have learned
        positions and n is at most that; without, order means nothing, and n may be anything at any time.
    n_classes, width, n_layers, n_heads, mlp_ratio : int
        The width of an MLP is mlp_ratio times the width of a token.

    Raises
    ------
    TypeError, ValueError
        If sizes do not fit each other, or say two kinds of input.

    Examples
    --------
    >>> Architecture(image=(8, 8), patch=2).n_tokens, Architecture(vocabulary=1000, length=30).n_tokens
    (17, 31)
    >>> Architecture(features=2, n_heads=4).kind
    'vectors'
    """

    image: tuple[int, int] | None = None
    patch: int | None = None
    vocabulary: int | None = None
    features: int | None = None
    length: int | None = None
    n_classes: int = 10
    width: int = 48
    n_layers: int = 2
    n_heads: int = 12
    mlp_ratio: int = 2

    def __post_init__(self):
        given = [name for name in ("image", "vocabulary", "features") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Architecture: {' and '.join(given)} were given, but inputs are of one kind")
        if self.kind == "images":
            if self.image is not None and self.patch is None:
                raise ValueError(
                    f"Architecture: an image {self.image} is cut into patches, so give patch as well; if inputs "
                    "are sequences of vectors (batch, n, features), give features instead"
                )
            image = (8, 8) if self.image is None else self.image
            if not isinstance(image, tuple | list) or len(image) != 2:
                raise TypeError(f"Architecture: image must be (height, width), got {image!r:.60}")
            image = tuple(check_count(side, "image", "Architecture", least=1) for side in image)
            object.__setattr__(self, "image", image)
            object.__setattr__(self, "patch", 2 if self.patch is None else self.patch)
        sizes = [name for name in ("patch", "vocabulary", "features", "length") if getattr(self, name) is not None]
        sizes += ["length"] if self.kind == "text" else []
        for name in (*sizes, "n_classes", "width", "n_layers", "n_heads", "mlp_ratio"):
            value = check_count(getattr(self, name), name, "Architecture", least=1)
            object.__setattr__(self, name, value)  # Python's own numbers, which a file can hold
        if self.kind == "images" and self.length is not None:
            raise ValueError(
                f"Architecture: length {self.length} is of texts or vectors; give vocabulary or features"
            )
        if self.width % self.n_heads:
            raise ValueError(f"Architecture: width {self.width} is not a multiple of n_heads {self.n_heads}")
        if self.kind == "images" and any(side % self.patch for side in self.image):
            raise ValueError(f"Architecture: image {self.image} cannot be cut into patches of {self.patch}")

    @property
    def kind(self):
        """What is read: a key of `embedding.KINDS`."""
        if self.vocabulary is not None:
            return "text"
        return "images" if self.features is None else "vectors"

    @property
    def n_tokens(self):
        """Tokens of a sequence, at most, the class token included; None where a sequence may have any length."""
        if self.kind == "images":
            return 1 + (self.image[0] // self.patch) * (self.image[1] // self.patch)
        return None if self.length is None else 1 + self.length


def initialise(architecture, *, seed=0, dtype=np.float32):
    """Draw parameters (initial.py, and embedding.py for those of each kind of input): a nested dict of NumPy arrays.

    Examples
    --------
    >>> params = initialise(Architecture())
    >>> params["block0"]["heads"]["qkv"]["weight"].shape
    (48, 144)
    """
    a, draw = architecture, Draw(seed, dtype)
    blocks = draw.blocks(a)
    embedding = KINDS[a.kind].initial(draw, a)
    return {
        "embedding": embedding,
        **blocks,
        "norm": draw.norm(a.width),
        "head": draw.affine(a.width, a.n_classes),
    }


@operator
def transformer(params: "...", inputs: "...", architecture, attentions):
    """Logits of a batch of images, token ids or vectors -> (B, n_classes).

    Parameters
    ----------
    params : nested dict of arrays
        As from `initialise`, in the module and dtype of the inputs.
    inputs : array
        Images (B, height, width); integer token ids (B, n), 0 where a text is padded; or vectors (B, n, features), or
        `Sequences` of them with their mask.
    architecture : Architecture
    attentions : sequence of Attention
        One for each layer.

    Raises
    ------
    TypeError, ValueError
        On wrong shapes or dtypes, a wrong number of attentions, or non-finite input.
    """
    _check_one_a_layer(attentions, architecture)
    x, mask, _ = embed_vjp(params["embedding"], inputs, architecture)
    for i, attention in enumerate(attentions):
        x = block(x, params[f"block{i}"], attention, architecture.n_heads, mask)
    return linear(layer_norm(x[:, 0, :], **params["norm"]), **params["head"])


@operator
def transformer_vjp(params: "...", inputs: "...", architecture, attentions, *, noise=None):
    """Logits and their VJP in the parameters, ``vjp(d_logits) -> d_params``, a dict like params.

    Noise, as from `training.dropout_noise`, multiplies the embedded tokens and what each branch of a block writes.
    """
    _check_one_a_layer(attentions, architecture)
    x, mask, embed_backward = embed_vjp(params["embedding"], inputs, architecture)
    xp = array_namespace(x)
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


def _check_one_a_layer(attentions, architecture):
    if len(attentions) != architecture.n_layers:
        raise ValueError(f"transformer: {len(attentions)} attentions for {architecture.n_layers} layers")


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
    classes: tuple[str, ...] = ()  # their names, in the order of the logits, kept for whoever brings other data
    words: tuple[str, ...] = ()  # of a model on text: those behind the ids 2, 3, ...

    def __repr__(self):
        a, names = self.architecture, ", ".join(dict.fromkeys(attention.name for attention in self.attentions))
        tokens = KINDS[a.kind].told(a)
        sizes = f"{a.n_layers} x {a.n_heads} heads, width {a.width}, {trees.count(self.params)} parameters"
        return f"<Transformer on {tokens}: {sizes}, {names} attention>"

    @classmethod
    def create(cls, architecture, attention, *, seed=0, xp=np, dtype=np.float32, classes=(), words=()):
        """Draw a new model with the same attention in every layer, its parameters in the module xp."""
        params = initialise(architecture, seed=check_seed(seed, "Transformer.create"), dtype=dtype)
        if xp is not np:
            params = trees.place(params, xp)
        attentions = (attention,) * architecture.n_layers
        return cls(architecture, params, attentions, tuple(classes), tuple(words))

    def __call__(self, inputs):
        """Return the logits (B, n_classes) of inputs in the module of the parameters."""
        return transformer(self.params, inputs, self.architecture, self.attentions)

    def place(self, inputs):
        """Bring inputs of NumPy, or of its module, to the device of the model, and all but token ids to its dtype."""
        like = self.params["head"]["weight"]
        xp, kind = array_namespace(like), KINDS[self.architecture.kind]
        given = [x for _, x in trees.named_leaves("inputs", inputs)]
        if given and all(is_array(x) and array_namespace(x) is xp for x in given):  # they are there, or nearly
            kind.check(inputs, self.architecture)
        else:
            check_host_inputs(inputs, self.architecture, "transformer")
        if kind.exact:
            return (
                from_numpy(inputs.astype(np.int64), xp, device=like.device)
                if isinstance(inputs, np.ndarray)
                else inputs
            )
        return Sequences.placed(inputs, like)

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
        header |= {"classes": self.classes, "words": self.words}
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
        if architecture.get("vocabulary") is not None:
            architecture |= {"image": None, "patch": None}  # which version 0.1 kept beside it
        architecture, params = Architecture(**architecture), arrays["params"]
        trees.check_like(params, initialise(architecture))
        if backend != "numpy":
            params = trees.place(params, array_module(backend))
        # version 0.1 kept neither of the two
        names = (header["classes"], header["words"]) if {"classes", "words"} & set(header) else ((), ())
        return cls(architecture, params, attentions, *map(tuple, names))


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
    array_module(backend)  # what is not there is said before the file is read
    return Transformer.load(path, backend=backend)
