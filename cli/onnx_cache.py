"""Leaves the network of an encoder that is open for the searches to come."""

from typing import TYPE_CHECKING

from cli.output import Output

if TYPE_CHECKING:
    from retrieval.contracts import Encoder


def keep_for_searches(output: Output, encoder: "Encoder") -> None:
    """Export the encoder into the user's cache, or warn that searches will take longer."""
    from retrieval.embedding.onnx_cache import keep_export
    from retrieval.errors import RetrError

    try:
        keep_export(encoder)
    except (RetrError, OSError) as error:
        output.warn(f"searches will load torch, which takes longer: {error}")
