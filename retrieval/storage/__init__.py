"""Data on disk: embeddings, trained encoders, and whether what lies there is whole."""
