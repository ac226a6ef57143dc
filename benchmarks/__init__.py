"""Whole training steps of tfspike and of its peers, side by side (`python -m benchmarks.run --help`)."""
