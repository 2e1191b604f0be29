"""The backend `pgvector`; docs/pgvector.md describes its files and tables."""

from indexers.pgvector.backend import Pgvector

__all__ = ["Pgvector"]
