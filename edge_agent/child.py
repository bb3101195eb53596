"""What every child process of ours does first."""

import contextlib
import ctypes
import os
import signal
import stat
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
    _let_go(sys.__stderr__.fileno() if sys.__stderr__ else 2)


def _let_go(descriptor: int) -> None:
    """Let what native libraries print be lost where nobody reads it: a full pipe would hold them up for ever.

    The file is opened anew: that it is not waited for must not concern others who have it.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):  # nobody reads a pipe any more, or it is another user's
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(own, descriptor)
            os.close(own)
