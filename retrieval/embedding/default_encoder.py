"""The encoder of images for which the user names none.

docs/results.md says how the encoder for photographs was chosen.
"""

from retrieval.contracts import Encoder
from retrieval.embedding.known import open_known
from retrieval.errors import BadInput, RetrError
from retrieval.images import DATA_SET_NAMES, Source
from retrieval.images.datasets.cifar import CifarSource
from retrieval.images.datasets.idx import IdxSource
from retrieval.images.source import Note, no_note
from retrieval.storage.places import Place
from retrieval.storage.sets.manifest import MANIFEST, Manifest

DATA_SET_ENCODER = "siamese"  # trained on CIFAR-10
PHOTO_ENCODER = "pretrained:convnext_nano.in12k_ft_in1k"
WORDS_ENCODER = "clip:ViT-B-32-256"  # takes words, and half as much time again
OFFLINE_PHOTO_ENCODER = "pretrained:tf_efficientnet_lite0"  # retr brings its weights


def default_encoder(
    source: Source, device: str = "auto", words: bool = False
) -> tuple[Encoder, str]:
    """Return the encoder for the source, and a sentence that says which was taken and why.

    The sentence is empty for a data set. device: auto, cpu or cuda. words: whether the photographs
    are for searches in words. Raises the errors of `open_encoder`.
    """
    if is_data_set(source):
        return open_known(DATA_SET_ENCODER, device), ""
    if words:
        encoder = open_known(WORDS_ENCODER, device, words)
        return encoder, _sentence(encoder, "the default for searches in words")
    try:
        encoder = open_known(PHOTO_ENCODER, device)
    except BadInput:
        raise
    except RetrError:
        encoder = open_known(OFFLINE_PHOTO_ENCODER, device)
        reason = f"needs no network; the model hub, which has {PHOTO_ENCODER}, cannot be reached"
    else:
        reason = "the default for photographs"
    return encoder, _sentence(encoder, reason)


def _sentence(encoder: Encoder, reason: str) -> str:
    return f"encoder {encoder.name}: {reason}; choose another with --encoder"


def encoder_for(
    source: Source,
    name: str | None,
    folder: Place | None,
    device: str = "auto",
    note: Note = no_note,
    words: bool = False,
) -> Encoder:
    """Return the encoder of this name, else that of the embeddings in the folder, else the default.

    folder: may be None, or hold no embeddings; data sets have their default whatever it holds.
    note: is called with a sentence about the default. words: as for `default_encoder`.

    Raises the errors of `open_encoder`.
    """
    if name is None and folder is not None and not is_data_set(source):
        there = (folder / MANIFEST).exists()
        name = Manifest.read(folder).facts.encoder.name if there else None
    if name is not None:
        return open_known(name, device, words)
    encoder, reason = default_encoder(source, device, words)
    if reason:
        note(reason)
    return encoder


def is_data_set(source: Source) -> bool:
    """Return whether the source is a data set of small images, not a collection of photographs."""
    known = source.name.partition("/")[0] in DATA_SET_NAMES
    return known or isinstance(source, CifarSource | IdxSource)
