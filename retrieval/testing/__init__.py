"""The contract as a test: what every encoder and every indexer must do, plug-ins included.

A plug-in's test file is two lines:

    def test_contract() -> None:
        check_indexer(MyIndexer())

Both functions raise AssertionError with a message that says what was promised. They need
nothing but the plug-in: the data is made here, small, from fixed seeds.
"""

from retrieval.testing.encoders import check_encoder
from retrieval.testing.indexers import check_indexer

__all__ = ["check_encoder", "check_indexer"]
