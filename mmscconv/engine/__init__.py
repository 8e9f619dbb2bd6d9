"""The tools' common parts: command line, the way of a config through a run, runner, logs and their summaries."""
