"""Pixels of images: decoding and its limits, framing, colors, transparency."""
