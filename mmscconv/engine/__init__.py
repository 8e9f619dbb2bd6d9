"""The tools' common parts: command line, runner, checkpoints, writing to disk, logs and their summaries."""
