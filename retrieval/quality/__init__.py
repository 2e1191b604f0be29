"""Measures of quality: retrieval over labels, the recall of indices, and pairs of images."""
