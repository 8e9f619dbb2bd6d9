#!/usr/bin/env python
"""Check the environment; each problem comes with the command that mends it (python -m mmscconv.doctor)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

try:
    from mmscconv.doctor import main
except ImportError as error:
    # The package itself needs torch alone; the error names the command that installs it.
    sys.exit(f'PROBLEM {error}')

if __name__ == '__main__':
    sys.exit(main())
