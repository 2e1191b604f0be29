"""Check all registered plug-ins against their contracts, and print their names as JSON.

The test of the wheel runs it in an environment without pytest, where only the wheel is installed.
"""

import json

from retrieval.contracts import Metric
from retrieval.errors import BadInput
from retrieval.registry import encoder_names, indexer_names, make_indexer, open_encoder
from retrieval.testing import check_encoder, check_indexer

ARGUMENTS = {"pretrained": ":tf_efficientnet_lite0"}
NEEDS_FOLDER = {"exported", "clip"}  # the name is followed by a folder


def main() -> None:
    """Check each backend with each of its metrics, and each encoder."""
    for name in indexer_names():
        for metric in Metric:
            try:
                indexer = make_indexer(name, {"metric": metric})
            except BadInput:  # the backend lacks the metric
                continue
            check_indexer(indexer)
    encoders = [name for name in encoder_names() if name not in NEEDS_FOLDER]
    for name in encoders:
        check_encoder(open_encoder(name + ARGUMENTS.get(name, ""), device="cpu"))
    print(json.dumps({"indexers": sorted(indexer_names()), "encoders": sorted(encoders)}))


if __name__ == "__main__":
    main()
