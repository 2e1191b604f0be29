"""Small dual encoders that `retr train` trains: a siamese network beside a text transformer.

The text tower is open_clip's transformer with the first merges of CLIP's vocabulary. It knows the
names that its captions had, not language.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional

from encoders.networks import Amount, Count, Network, Settings
from encoders.siamese import SiameseNetwork, SiameseSettings
from encoders.trained import TrainedEncoder
from encoders.words.dual import DualEncoder
from encoders.words.tokenizer import Tokenizer
from retrieval.contracts import Json, Metric, Prompts
from retrieval.storage.cards import Card

BYTES = 514  # tokens of CLIP's vocabulary that are no merges
FIRST_SCALE, FIRST_BIAS = 10.0, -5.0
"""Logits before the training, as in SigLIP (arXiv:2303.15343), with more captions that fit."""


@dataclass(frozen=True)
class WordsSettings(Settings):
    """Settings of the two towers; a recipe's `[network]` fills them."""

    widths: tuple[Count, Count, Count] = (64, 256, 256)  # channels of each block of images
    depth: Count = 2  # convolutions of a block
    dim: Count = 118  # dimension of both towers' output
    mirror: bool = True  # also embed the mirror image, at twice the time
    shift: Amount = 0  # pixels; also embed views moved two ways, at three times the time
    frozen_blocks: Amount = 0  # first blocks of images that keep the weights of the start
    context: Count = 32  # tokens of a text
    merges: Amount = 8192 - BYTES  # merges of CLIP's vocabulary
    text_width: Count = 128
    text_layers: Count = 3
    text_heads: Count = 4


class WordsNetwork(Network):
    """Two towers, from images (n, 3, side, side) and from texts to unit vectors (n, dim)."""

    settings_type = WordsSettings
    settings: WordsSettings
    precise = frozenset({f"image.{name}" for name in SiameseNetwork.precise} | {"scale", "bias"})

    def __init__(self, settings: WordsSettings, classes: int, side: int) -> None:
        super().__init__(settings, classes, side)
        self.settings = settings
        self.metric = Metric.COSINE
        image = SiameseSettings(
            widths=settings.widths,
            depth=settings.depth,
            dim=settings.dim,
            mirror=settings.mirror,
            shift=settings.shift,
        )
        self.image = SiameseNetwork(image, classes, side)
        self.tokenizer = Tokenizer.of_clip(settings.context, merges=settings.merges)
        self.text = TextTransformer(
            context_length=settings.context,
            vocab_size=self.tokenizer.vocabulary,
            width=settings.text_width,
            heads=settings.text_heads,
            layers=settings.text_layers,
            output_dim=settings.dim,
        )
        for layer in self._frozen():
            layer.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))

    def _frozen(self) -> Sequence[nn.Module]:
        count = self.settings.frozen_blocks
        return [self.image.whitening, *self.image.blocks[:count]] if count else []

    def train(self, mode: bool = True) -> "WordsNetwork":
        """Set the mode of the network; frozen blocks stay in evaluation mode."""
        super().train(mode)
        for layer in self._frozen():
            layer.eval()
        return self

    @property
    def training_dim(self) -> int:
        return self.settings.dim

    def prepare(self, images: Tensor) -> None:
        """Set the whitening of the images' tower."""
        self.image.prepare(images)

    def part_like(self, trained: Network) -> Network | None:
        """Return the images' tower for a siamese network, else as every network does."""
        return self.image if isinstance(trained, SiameseNetwork) else super().part_like(trained)

    def fresh_parameters(self) -> Sequence[Tensor]:
        return [*self.text.parameters(), self.scale, self.bias]

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.image(images))

    def caption_logits(self, embeddings: Tensor, texts: Sequence[str]) -> Tensor:
        tokens = torch.from_numpy(self.tokenizer(texts)).to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            vectors = functional.normalize(self._of_short(tokens), dim=1)
            return self.scale.exp() * embeddings.float() @ vectors.T + self.bias

    def _of_short(self, tokens: Tensor) -> Tensor:
        """Return the text tower's output without computing what follows the longest text.

        No token sees a later one, so that the output is the same.
        """
        longest = int((tokens != 0).any(0).sum())
        mask = self.text.attn_mask
        self.text.attn_mask = mask[:longest, :longest]
        try:
            return cast(Tensor, self.text(tokens[:, :longest]))
        finally:
            self.text.attn_mask = mask

    def embedder(self) -> nn.Module:
        return self.image.embedder()

    def text_embedder(self) -> nn.Module:
        """Return the network from tokens (n, context) to unit vectors (n, dim)."""
        return UnitLength(self.text)


class UnitLength(nn.Module):
    """A network, with its output scaled to unit length."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.normalize(self.network(inputs), dim=1)


class Words(DualEncoder, TrainedEncoder):
    """`words-small`, and `words:FOLDER` for a folder that `retr train` made.

    `words-small` knows the classes of CIFAR-10, Fashion-MNIST and MNIST, in images of 32 × 32
    pixels. It shows how searches in words work; it is not for photographs.
    """

    plugin: ClassVar[str] = "words"
    ships_as: ClassVar[str] = "words-small"
    network_type = WordsNetwork

    def __init__(self, folder: str | None = None, device: str = "auto") -> None:
        """Load the weights of a trained encoder's folder, or those that ship with retr.

        device: auto, cpu or cuda. Raises BadData for another folder or a damaged one.
        """
        network, card, facts = self.loaded(folder)
        assert isinstance(network, WordsNetwork)
        self.trained = network
        DualEncoder.__init__(
            self,
            network.embedder(),
            network.text_embedder(),
            network.tokenizer,
            Prompts(_templates(card), network.scale.exp().item(), network.bias.item()),
            device=device,
            **facts,
        )


def _templates(card: Card) -> tuple[str, ...]:
    """Return the templates that the encoder was trained with."""
    captions = cast(Mapping[str, Json], card.training.recipe["captions"])
    return tuple(map(str, cast(list[str], captions["templates"])))
