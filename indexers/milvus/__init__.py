"""The backend `milvus`: docs/milvus.md says what lies where."""

from indexers.milvus.backend import Milvus

__all__ = ["Milvus"]
