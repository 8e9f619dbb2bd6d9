"""What the tools share: early checks, clear errors, and the command line."""
