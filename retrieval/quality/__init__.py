"""How good it is: retrieval over labels, the recall of indices, and pairs of images."""
