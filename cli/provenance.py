"""What commands say of where an encoder comes from."""

from typing import TYPE_CHECKING

from cli.output import Output

if TYPE_CHECKING:
    from retrieval.quality.provenance import Provenance
    from retrieval.storage.manifest import EncoderFacts


def known_provenance(output: Output, encoder: "EncoderFacts") -> "Provenance | None":
    """Where the encoder comes from; None, with a warning, for one whose folder is lost."""
    from retrieval.quality.provenance import has_card, provenance_of

    found = provenance_of(encoder)
    if found is None and has_card(encoder):
        output.warn(
            f"the folder of encoder {encoder.name} is gone, or holds other weights by now: which "
            "images and classes it was trained on is not known"
        )
    return found
