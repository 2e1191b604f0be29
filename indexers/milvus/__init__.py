"""The backend `milvus`; docs/milvus.md describes its files and collections."""

from indexers.milvus.backend import Milvus

__all__ = ["Milvus"]
