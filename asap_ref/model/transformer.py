"""A small Transformer without autograd: pure functions on nested dicts.

    transformer = embed -> block x n_layers -> norm -> head on the class token                  blocks.py has the block

The attention is an argument, one for each layer. The output is read off a class token: mean pooling would
cancel doubly-stochastic attention, since ``mean_i sum_j P_ij v_j = mean_j v_j`` when columns of P sum to one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from asap_ref.model.architecture import Architecture
from asap_ref.model.blocks import block, block_vjp, times
from asap_ref.model.embedding import KINDS, embed_vjp
from asap_ref.model.initial import Draw
from asap_ref.model.inputs import check_host_inputs
from asap_ref.model.layers import layer_norm, layer_norm_vjp, linear, linear_vjp, named
from asap_ref.model.mechanism import Attention
from asap_ref.model.sequences import Sequences
from asap_ref.support import files, trees
from asap_ref.support.arrays import array_module, array_namespace, from_numpy, is_array
from asap_ref.support.contracts import operator
from asap_ref.support.settings import check_seed


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
    def create(
        cls, architecture, attention, *, seed=0, xp=np, dtype=np.float32, classes=(), words=()
    ) -> Transformer:
        """Draw a new model with the same attention in every layer, its parameters in the module xp."""
        _check_no_names([attention], "Transformer.create")
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

    def with_attention(self, *attentions) -> Transformer:
        """Return the same parameters with other attention: one for all layers, or one for each."""
        if len(attentions) == 1:
            attentions = attentions * self.architecture.n_layers
        _check_no_names(attentions, "with_attention")
        return replace(self, attentions=tuple(attentions))

    def save(self, path) -> None:
        """Write the model, amortizers included, as one .npz, atomically."""
        arrays, attention_settings = {"params": self.params}, []
        for i, attention in enumerate(self.attentions):
            arrays[f"attention{i}"], settings = attention.state()
            attention_settings.append(settings)
        header = {"architecture": asdict(self.architecture), "attentions": attention_settings}
        header |= {"classes": self.classes, "words": self.words}
        files.save(path, "transformer", arrays, header)

    @classmethod
    def load(cls, path, *, backend="numpy") -> Transformer:
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


def _check_no_names(attentions, function):
    """Raise where a mechanism's name was given for an `Attention`: it would fail only when the model is used."""
    for name in attentions:
        if isinstance(name, str):
            raise TypeError(f"{function}: attention must be an Attention, got {name!r}; give Attention({name!r})")
