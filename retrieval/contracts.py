"""Contracts between the parts of retr: arrays, metrics, encoders, scorers, indexers, indices.

An `Indexer` is a frozen dataclass of options. It builds or loads an `Index`, which can be searched
as soon as it exists. Indices know row numbers. Only `retrieval` knows ids, labels and paths, and
backends that ask for them (`Storing`, `Filtering`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval.choices import resolve_choices

if TYPE_CHECKING:
    import pyarrow as pa

    from retrieval.where.conditions import Condition

Images = NDArray[np.uint8]
"""(n, height, width, 3), RGB."""

Vectors = NDArray[np.float32]
"""(n, dim), C-contiguous, finite."""

Mask = NDArray[np.bool_]
"""(rows,): true for the rows that may be found."""

Maps = NDArray[np.float16]
"""(n, numbers): one layer's feature maps of n images."""

Rows = NDArray[np.int64]

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class Metric(StrEnum):
    """Distance between two vectors; smaller is nearer."""

    COSINE = "cosine"  # 1 - cos; 1 from and to the zero vector
    EUCLIDEAN = "euclidean"  # not squared
    INNER_PRODUCT = "inner_product"  # minus the dot product
    MANHATTAN = "manhattan"  # sum of absolute differences


class Resample(StrEnum):
    """Filters for resizing, as Pillow names them; both widen when they shrink an image."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


@dataclass(frozen=True, slots=True)
class Framing:
    """Resizing and cropping of an image of any size to the square that an encoder sees.

    The image is resized so that its shorter side measures `side / crop` pixels, rounded, and
    the central `side` × `side` pixels are kept. With `squash`, the whole image is resized to a
    square instead, and may lose its proportions. An image that has this size already is not
    resampled.
    """

    side: int
    crop: float = 1.0
    resample: Resample = Resample.BICUBIC
    squash: bool = False

    def __post_init__(self) -> None:
        resolve_choices(self)


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The k nearest rows of q queries, nearest first; among equals the lower row first.

    rows: (q, k) int64, -1 where fewer than k were found.
    distances: (q, k) float32, smaller is nearer; +inf where the row is -1.
    share: of the index's rows, that was searched; below 1 if a node of a cluster was lost.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Filter:
    """Admits the rows whose `field`, id or label, is one of the values."""

    field: str
    values: tuple[str, ...]


@runtime_checkable
class Encoder(Protocol):
    """Turns images into vectors: the same image always into the same vector, up to rounding.

    `retrieval.registry.open_encoder(name)` opens an encoder again by its `name`. `fingerprint`
    tells whether it is still the same one.
    """

    @property
    def name(self) -> str:
        """The name that `--encoder` takes, with its argument: `siamese`, `pretrained:resnet18`."""

    @property
    def dim(self) -> int:
        """Number of dimensions of an embedding."""

    @property
    def metric(self) -> Metric:
        """The metric that the embeddings were made for."""

    @property
    def framing(self) -> Framing:
        """Framing of the images that `encode` takes."""

    @property
    def config(self) -> Mapping[str, Json]:
        """The settings that the embeddings depend on, for people to read in a manifest."""

    @property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of weights, preprocessing and code version."""

    def encode(self, images: Images) -> Vectors:
        """Return the embeddings (n, dim) of images (n, side, side, 3); n may be 0 or any number."""


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder that also embeds text, in the same space as images."""

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return the embeddings (n, dim) of n texts; n may be 0 or any number."""


@runtime_checkable
class Tokenizing(TextEncoder, Protocol):
    """A text encoder that says how much of a text it reads."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a text, those of start and end included."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text; those beyond the maximum are not read."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Settings by which a text encoder tells classes apart by their names (zero-shot).

    templates: sentences with `{}` for the name; a class is the mean of their unit vectors.
    scale: factor of a cosine in a class's logit, as in training.
    bias: added to it. With a bias, the logistic function of the logit is the probability that text
        and image belong together, as SigLIP is trained (arXiv:2303.15343). None for an encoder
        that was trained to compare classes by a softmax, as CLIP (arXiv:2103.00020).
    """

    templates: tuple[str, ...] = ("{}",)
    scale: float = 100.0  # CLIP's, after training
    bias: float | None = None


@runtime_checkable
class Prompted(TextEncoder, Protocol):
    """A text encoder that says how it tells classes apart; others get the default `Prompts`."""

    @property
    def prompts(self) -> Prompts:
        """Templates, scale and bias."""


@runtime_checkable
class FromFiles(Encoder, Protocol):
    """An encoder that says which files its weights came from."""

    @property
    def files(self) -> Sequence[Path]:
        """The files; the same encoder opens as long as none of them changes. Empty: not known."""


@runtime_checkable
class Exportable(Encoder, Protocol):
    """An encoder whose network can run elsewhere, without the library that trained it."""

    def export(self, path: Path) -> None:
        """Write the network as ONNX: `images` (n, side, side, 3) uint8 in, `embeddings` (n, dim)
        float32 out. Raises CannotExport if the exported network has other output."""


@runtime_checkable
class TextExportable(Exportable, TextEncoder, Protocol):
    """A text encoder whose two networks can run elsewhere."""

    def export_text(self, network: Path, tokenizer: Path) -> Mapping[str, Json]:
        """Write the text tower as ONNX, `tokens` (n, tokens) int64 in, `embeddings` (n, dim)
        float32 out, and the tokenizer. Return the settings of the tokenizer. Raises CannotExport.
        """


@runtime_checkable
class PairScorer(Encoder, Protocol):
    """An encoder that also scores pairs of images, by the layers of its network.

    `encoders.layers` is one.
    """

    @property
    def layers(self) -> Sequence[str]:
        """The names of the layers."""

    def maps(self, images: Images) -> list[Maps]:
        """Return each layer's maps (n, numbers) of images (n, side, side, 3)."""

    def differences(self, maps: Sequence[Maps], first: Rows, second: Rows) -> Vectors:
        """Return (pairs, layers): the mean squared differences between rows of the maps."""

    def probability(self, differences: Vectors) -> NDArray[np.float64] | None:
        """Return (pairs,): the probability that a pair shows one class; None if not known."""


@runtime_checkable
class Index(Protocol):
    """Vectors that can be searched, known by their row."""

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""

    @property
    def details(self) -> Mapping[str, Json]:
        """Decisions of the build, for people to read: number of lists, device, …"""

    def __len__(self) -> int:
        """Return the number of rows."""

    def search(self, queries: Vectors, k: int, among: Mask | None = None) -> Hits:
        """Return the k ≥ 1 nearest rows of each of the queries (q, dim), among those of the mask.

        k may exceed the number of rows: the rest is padded, as `Hits` says.
        """

    def save(self, folder: Path) -> None:
        """Write the library's own file or files into the existing `folder`."""


@runtime_checkable
class Growing(Index, Protocol):
    """An index that takes further vectors, as rows after those that it has."""

    def add(self, vectors: Vectors) -> None:
        """Add vectors (n, dim), n ≥ 1. Raises BadInput or Mismatch, and is then as it was."""


@runtime_checkable
class Shrinking(Index, Protocol):
    """An index from which rows can be deleted; later rows move up."""

    def delete(self, rows: Rows) -> None:
        """Delete these rows, all different, and fewer than there are."""


@runtime_checkable
class Filtering(Index, Protocol):
    """An index that knows ids and labels, and filters by them in its own search."""

    def search_where(self, queries: Vectors, k: int, among: Mask, where: Filter) -> Hits:
        """Search like `search`, with a mask of the rows that match `where`."""


@runtime_checkable
class Querying(Index, Protocol):
    """An index that knows all columns of its rows, and filters by conditions on them."""

    def search_condition(
        self, queries: Vectors, k: int, among: Mask, condition: "Condition"
    ) -> Hits:
        """Search like `search`, with a mask of the rows that meet the condition."""


@runtime_checkable
class Upserting(Index, Protocol):
    """An index that stores the columns of its rows, and follows them when they change."""

    def upsert(self, table: "pa.Table", old: Rows, added: Vectors) -> Index:
        """Return the index of the rows of the table. `save` makes it visible to others.

        table: id, label, path and further columns of all rows. old: (rows,), the row of this
        index with the same vector, or -1 for one of `added` (n, dim), in order.
        """


@runtime_checkable
class Indexer(Protocol):
    """A backend with its options: a frozen dataclass whose fields are JSON scalars.

    Every field has a default, so that `Backend()` is a sensible index. The class attribute
    `search_options` names the fields that may differ between build and load (`ef`, `n_probe`):
    `load` applies its own indexer's values of these fields to the index that it reads.
    """

    @property
    def metric(self) -> Metric:
        """The metric of the index."""

    @property
    def search_options(self) -> frozenset[str]:
        """The fields that trade recall for time at search, and may change after the build."""

    def build(self, vectors: Vectors) -> Index:
        """Build an index of at least one vector. The vectors are not changed."""

    def load(self, folder: Path) -> Index:
        """Load the index that `Index.save` wrote into `folder`."""


@runtime_checkable
class Settling(Indexer, Protocol):
    """A backend that chooses options that are None from the vectors that it indexes."""

    def settled(self, index: Index) -> Self:
        """Return these options with the values of a built index in place of None."""


class Blocks(Protocol):
    """Vectors (rows, dim) in blocks, from the first row on. They can be read several times."""

    @property
    def rows(self) -> int:
        """Number of vectors, at least 1."""

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""

    def __iter__(self) -> Iterator[Vectors]:
        """Yield the blocks (n, dim), n ≥ 0."""


@runtime_checkable
class Readable(Index, Protocol):
    """An index that can return its vectors."""

    def stored(self) -> Blocks | None:
        """Return all vectors by row, possibly scaled if the metric is cosine.

        Return None if the index holds only codes of the vectors.
        """


@runtime_checkable
class Streaming(Indexer, Protocol):
    """A backend that builds without having all vectors in memory beside the index."""

    def build_from(self, blocks: Blocks) -> Index:
        """Build the index that `build` builds of the same vectors."""


class Items(Blocks, Protocol):
    """Vectors in blocks, with ids, labels and paths, and facts about the build."""

    @property
    def table(self) -> "pa.Table":
        """id, label and path of each row, as text; the last two may be null."""

    @property
    def columns(self) -> "pa.Table | None":
        """Further columns of the rows, for filters; None without any."""

    @property
    def encoder(self) -> str:
        """The fingerprint of the encoder."""

    @property
    def source(self) -> Sequence[str]:
        """The sha256 of the manifest of each embeddings folder. Equal hashes mean equal rows."""

    @property
    def unfinished(self) -> Path:
        """A folder for work that a later build may continue; it may not exist yet.

        It is kept if a build is killed or fails, and deleted after one that succeeds.
        """


@runtime_checkable
class Storing(Indexer, Protocol):
    """A backend that stores id, label and path with each vector, and resumes a killed build."""

    def store(self, items: Items) -> Index:
        """Return the same index as `build` does, with items. Continue a killed build."""


@runtime_checkable
class Tunable(Indexer, Protocol):
    """A backend that `retr index --backend auto` may choose."""

    @classmethod
    def candidates(cls, metric: Metric, rows: int, dim: int, seed: int) -> Sequence[Self]:
        """Return builds worth trying for this many vectors; none if the metric is not supported."""

    def ladders(self) -> Sequence[Sequence[Self]]:
        """Return this build with other search options, from the fastest to the most thorough.

        With each rung of a ladder, recall and time rise.
        """

    def apply(self, index: Index) -> None:
        """Set these search options on an open index of this build, for later searches."""
