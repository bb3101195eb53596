"""What every child process of ours does first."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def tie(parent: int, *, name: str) -> None:
    """Tie this process to its parent and name it (at most 15 bytes): it dies with it. Exits if that is gone already.

    The kernel kills it when the *thread* that started it ends. Raises OSError where it cannot be told to.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call above, which then tells nobody
        sys.exit(0)
    prctl(_PR_SET_NAME, name.encode())
