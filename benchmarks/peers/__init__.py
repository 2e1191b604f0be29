"""retr beside other libraries for nearest neighbours: `python -m benchmarks.peers --help`.

One file for each library; `peer.py` is what they have in common, `worker.py` measures one of them
in a process of its own, and `__main__.py` runs all of them on the same data and prints one table.
"""
