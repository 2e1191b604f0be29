"""Keep the network of an open encoder for later searches."""

from typing import TYPE_CHECKING

from cli.output import Output

if TYPE_CHECKING:
    from retrieval.contracts import Encoder


def keep_for_searches(output: Output, encoder: "Encoder") -> None:
    """Write the encoder's network to the user's cache, or warn that searches will be slower."""
    from retrieval.embedding.onnx_cache import keep_export
    from retrieval.errors import RetrError

    try:
        keep_export(encoder)
    except (RetrError, OSError) as error:
        output.warn(f"searches will load torch and be slower: {error}")
