"""One page on a trained detector: the steps behind ``tools/report.py``."""
