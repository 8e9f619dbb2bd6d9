"""The tools' common parts: command line, order of checks, runner, logs and sweep tables."""
