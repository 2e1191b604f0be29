"""Losses for embeddings of unit length; a mini-batch passes one weight-shared branch at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CosineClassifier(nn.Module):
    """Cross-entropy over the scaled cosines to one learned proxy a class (normalised softmax)."""

    def __init__(self, dim: int, classes: int, scale: float, smoothing: float) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(classes, dim))
        self.scale = scale
        self.smoothing = smoothing

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of (n, dim) unit vectors with labels (n,)."""
        cosines = embeddings @ functional.normalize(self.proxies, dim=1).T
        return functional.cross_entropy(
            self.scale * cosines, labels, label_smoothing=self.smoothing
        )


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The mean supervised contrastive loss over all pairs of a batch.

    Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362, equation 2 (L_out):
    for each anchor, the mean over its positives of minus the log of their share in the softmax
    over all other images of the batch. Anchors without a positive are left out.

    embeddings: (n, dim), unit length; labels: (n,).
    """
    similarities = embeddings @ embeddings.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    log_share = functional.log_softmax(similarities.masked_fill(itself, float("-inf")), dim=1)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    count = positive.sum(1)
    per_anchor = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return per_anchor[count > 0].mean()


def views_agree(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The mean contrastive loss of two views of each image, without labels (NT-Xent).

    Chen et al., A Simple Framework for Contrastive Learning, arXiv:2002.05709, equation 1: it is
    the supervised contrastive loss with each image as a class of its own.

    first, second: (n, dim), unit length, row i of both a view of image i.
    """
    images = torch.arange(len(first)).repeat(2)
    return supervised_contrastive(torch.cat((first, second)), images, temperature)
