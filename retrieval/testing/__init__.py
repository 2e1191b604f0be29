"""Tests of the contract of encoders and indexers, for plug-ins, too.

A plug-in's test file has two lines:

    def test_contract() -> None:
        check_indexer(MyIndexer())

Both functions raise AssertionError, with the rule that is broken. They need nothing but the
plug-in: they generate small data from fixed seeds.
"""

from retrieval.testing.encoders import check_encoder
from retrieval.testing.indexers import check_indexer

__all__ = ["check_encoder", "check_indexer"]
