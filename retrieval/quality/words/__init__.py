"""Quality of searches in words: text queries, captions, classes by their names, labels."""
