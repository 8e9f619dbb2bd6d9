"""One page on a trained detector: the rooms behind ``tools/report.py``."""
