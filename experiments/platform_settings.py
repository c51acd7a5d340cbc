"""What depends on the machine: its devices, and settings that make long CPU work faster."""

from __future__ import annotations

import ctypes
import sys

import torch


def chosen_device(name: str) -> str:
    """The device of that name; "auto" is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_memory() -> None:
    """Have glibc keep freed memory instead of faulting it in again at each step."""
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: only speed is lost
