"""Files that outlive a run: atomic writing, full disks, and checkpoints that are loaded safely and compared."""
