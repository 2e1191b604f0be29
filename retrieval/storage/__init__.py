"""Data on disk: embeddings, trained encoders, and checks of their integrity."""
