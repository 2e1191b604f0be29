"""Libraries that run exported networks on the CPU, and their quantization.

A runtime is one file here, and one line in pyproject.toml.
"""
