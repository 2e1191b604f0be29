"""Sets of embeddings: a folder of Parquet shards and a manifest."""
