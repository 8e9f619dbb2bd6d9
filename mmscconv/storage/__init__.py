"""Files that outlive a run: atomic writing, full disks, safe loading and comparison of checkpoints."""
