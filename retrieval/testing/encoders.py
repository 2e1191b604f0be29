"""Check the contract of encoders."""

from functools import partial

import numpy as np

from retrieval.contracts import (
    Encoder,
    Framing,
    Images,
    Metric,
    TextEncoder,
    Vectors,
)
from retrieval.errors import BadInput
from retrieval.registry import open_encoder
from retrieval.testing.raising import expect_error

MIN_SAME_COSINE = 0.999  # between embeddings of one image in two batches


def check_encoder(encoder: Encoder) -> None:
    """Check an encoder against `Encoder`. It is also opened again by its name."""
    assert isinstance(encoder, Encoder), f"{encoder!r} lacks attributes of Encoder"
    assert isinstance(encoder.dim, int) and encoder.dim >= 1, f"dim is {encoder.dim!r}"
    assert isinstance(encoder.metric, Metric), f"metric is {encoder.metric!r}"
    assert isinstance(encoder.framing, Framing), f"framing is {encoder.framing!r}"
    assert _is_json(dict(encoder.config)), f"config must be JSON, is {encoder.config!r}"
    digits = set(encoder.fingerprint)
    assert len(encoder.fingerprint) == 64 and digits <= set("0123456789abcdef"), (
        f"the fingerprint must be a sha256 in hexadecimal, is {encoder.fingerprint!r}"
    )

    images = _images(7, encoder.framing.side)
    untouched = images.copy()
    vectors = encoder.encode(images)
    assert np.array_equal(images, untouched), "encode must leave the images as they are"
    _check_vectors(vectors, 7, encoder)
    _check_vectors(encoder.encode(images[:0]), 0, encoder)
    assert np.array_equal(encoder.encode(images), vectors), "the same batch, another embedding"
    assert _spread(vectors) > 0, "different images must not all have the same embedding"

    alone = []
    for one in range(7):
        single = encoder.encode(images[one : one + 1])
        _check_vectors(single, 1, encoder)
        alone.append(single)
    _check_same(vectors, np.concatenate(alone), "encoded one by one")
    backwards = encoder.encode(np.ascontiguousarray(images[::-1]))
    _check_same(vectors, backwards[::-1], "encoded in another order")

    again = open_encoder(encoder.name)
    assert again.name == encoder.name, f"'{encoder.name}' opens an encoder named '{again.name}'"
    assert again.fingerprint == encoder.fingerprint, "opened again, it has another fingerprint"
    _check_same(vectors, again.encode(images), "opened again")

    if isinstance(encoder, TextEncoder):
        _check_texts(encoder)

    side = encoder.framing.side
    for shape in ((2, side, side), (2, side + 1, side, 3), (2, 3, side, side), (2, side, side, 1)):
        wrong = np.zeros(shape, np.uint8)
        expect_error(BadInput, partial(encoder.encode, wrong), f"images of shape {shape}")


def _check_texts(encoder: TextEncoder) -> None:
    """Check `encode_text` as `encode` is checked."""
    texts = ["a red car in the snow", "two dogs", "a map"]
    vectors = encoder.encode_text(texts)
    _check_vectors(vectors, 3, encoder)
    _check_vectors(encoder.encode_text([]), 0, encoder)
    assert _spread(vectors) > 0, "different texts must not all have the same embedding"
    alone = np.concatenate([encoder.encode_text([text]) for text in texts])
    _check_same(vectors, alone, "encoded one by one", "a text")


def _images(count: int, side: int) -> Images:
    """Return different images of large colored tiles."""
    generator = np.random.default_rng(6)
    tiles = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    grid = np.arange(side) * 4 // side
    return np.ascontiguousarray(tiles[:, grid][:, :, grid])


def _check_vectors(vectors: Vectors, count: int, encoder: Encoder) -> None:
    wanted = (count, encoder.dim)
    assert vectors.shape == wanted, f"embeddings must have shape {wanted}, have {vectors.shape}"
    assert vectors.dtype == np.float32, f"embeddings must be float32, are {vectors.dtype}"
    assert vectors.flags.c_contiguous, "embeddings must be C-contiguous"
    assert np.isfinite(vectors).all(), "embeddings must be finite"


def _check_same(vectors: Vectors, others: Vectors, how: str, what: str = "an image") -> None:
    """Check that two embeddings of each image or text are the same, up to rounding."""
    lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(others, axis=1)
    cosines = (vectors * others).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-30)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    least = float(np.where(both_zero, 1, cosines).min())
    assert least > MIN_SAME_COSINE, f"{how}, {what} has another embedding: cosine {least:.5f}"
    assert np.allclose(lengths[0], lengths[1], rtol=0.02), f"{how}, embeddings change in length"


def _spread(vectors: Vectors) -> float:
    return float(np.abs(vectors - vectors[0]).max())


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)
