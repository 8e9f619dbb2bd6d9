#!/usr/bin/env python
"""Look over the environment; what is wrong comes with the command that mends it (python -m mmscconv.doctor)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

try:
    from mmscconv.doctor import main
except ImportError as error:
    # The package itself needs torch, and nothing else from outside; it names the command.
    sys.exit(f'PROBLEM {error}')

if __name__ == '__main__':
    sys.exit(main())
