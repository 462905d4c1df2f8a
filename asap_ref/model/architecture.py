"""The sizes of a Transformer, checked once, when they are stated."""

from __future__ import annotations

from dataclasses import dataclass

from asap_ref.support.settings import check_count


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
