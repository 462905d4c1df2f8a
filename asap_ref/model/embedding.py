"""How inputs become tokens: patches of an image or words of a text, with a class token before them.

Both embeddings add learned positions. Text is padded on the right with the id 0; the mask that comes with it says
which tokens are real: the class token always, a word where its id is not 0. Images have no padding and no mask.

Shapes: B inputs, n patches or words, width w -> x (B, n + 1, w), mask (B, 1, n + 1), broadcast over heads.
"""

from __future__ import annotations

from asap_ref.model.layers import linear_vjp, named
from asap_ref.support.arrays import array_namespace, sum_rows


def embed_vjp(params, inputs, architecture):
    """Tokens, their mask (None for images), and ``vjp(dx) -> d_params``: what the architecture asks for."""
    if architecture.vocabulary is None:
        return embed_image_vjp(params, inputs, architecture.patch)
    return embed_text_vjp(params, inputs)


# ------------------------------------------------------------------------------- images: (B, height, width)


def patches(images, size):
    """Cut (B, height, width) images into patches: (B, n, size²), row by row."""
    xp = array_namespace(images)
    b, height, width = images.shape
    grid = xp.reshape(images, (b, height // size, size, width // size, size))
    return xp.reshape(xp.permute_dims(grid, (0, 1, 3, 2, 4)), (b, (height // size) * (width // size), size * size))


def embed_image_vjp(params, images, patch):
    """Each patch through one linear map: (B, height, width) -> (B, n + 1, w)."""
    xp = array_namespace(images)
    x, patch_vjp = linear_vjp(patches(images, patch), **params["patch"])
    out = _with_class_token(params, x) + params["position"]

    def vjp(dx):
        _, *d_patch = patch_vjp(dx[:, 1:, :])
        return {
            "patch": named(d_patch, "weight", "bias"),
            "class_token": xp.sum(dx[:, 0, :], axis=0),
            "position": xp.sum(dx, axis=0),
        }

    return out, None, vjp


def _with_class_token(params, x):
    xp = array_namespace(x)
    return xp.concat([xp.broadcast_to(params["class_token"], (x.shape[0], 1, x.shape[2])), x], axis=1)


# -------------------------------------------------------------------------------------------- text: ids (B, n)


def embed_text_vjp(params, ids):
    """Each word's row of a table: ids (B, n) -> (B, n + 1, w)."""
    xp = array_namespace(ids)
    table, position = params["word"], params["position"]
    b, n = ids.shape
    flat = xp.reshape(ids, (-1,))
    words = xp.reshape(xp.take(table, flat, axis=0), (b, n, table.shape[1]))
    out = _with_class_token(params, words) + position[: n + 1, :]
    real = xp.concat([xp.ones_like(ids[:, :1], dtype=xp.bool), ids != 0], axis=1)  # (B, n + 1)

    def vjp(dx):
        unused = xp.zeros_like(position[n + 1 :, :])
        return {
            "word": sum_rows(xp.reshape(dx[:, 1:, :], (b * n, dx.shape[-1])), flat, table.shape[0]),
            "class_token": xp.sum(dx[:, 0, :], axis=0),
            "position": xp.concat([xp.sum(dx, axis=0), unused], axis=0),
        }

    return out, real[:, None, :], vjp
