"""Compare retr with other libraries for nearest neighbors: `python -m benchmarks.peers --help`.

One file for each library; `peer.py` has their common interface, `worker.py` measures one library
in a process of its own, and `__main__.py` runs all on the same data and prints one table.
"""
