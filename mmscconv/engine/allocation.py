"""Memory that the process keeps, instead of giving it back to the system after each map."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc refuses more
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory of maps up to 32 MiB for the next ones.

    By default malloc returns freed memory to the system after each step, and the kernel clears every page that it hands
    out again. With freed memory kept, training steps of ResNet-20 and SCConv-ResNet-20 on a CPU are 7 to 12 % shorter.
    The process keeps its peak memory until it ends.

    Returns:
        True if both thresholds were set. False on another C library than glibc, and where the environment already sets
        glibc's malloc (``MALLOC_*_`` or ``GLIBC_TUNABLES``).
    """
    if platform.libc_ver()[0] != 'glibc' or any(
        name == 'GLIBC_TUNABLES' or (name.startswith('MALLOC_') and name.endswith('_')) for name in os.environ
    ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _NEVER))
