"""``tools/benchmark.py``: measurements on the machine at hand, each against the peer a user would otherwise take."""
