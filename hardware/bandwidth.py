"""How fast the processors together can read memory, which bounds how fast a model can speak."""

import ctypes
import mmap
import re
import time
from pathlib import Path
from threading import Barrier, Thread

from hardware import files
from hardware.machine import Cpu, Memory

MEASURE_S = 0.2
BUFFER_BYTES_MIN = 64 * 2**20
BUFFER_BYTES_MAX = 2**30
PIECE_BYTES = 4 * 2**20
"""Read between two looks at the clock: under a millisecond each."""
THREADS_MAX = 64
ROOM_SHARE = 4
"""We take this part of the free memory at most."""


def measure(root: Path, cpu: Cpu, memory: Memory) -> float | None:
    """Return bytes read per second by as many threads as an engine gets; None where it cannot be told honestly.

    It is reading alone, as an engine reads weights, not copying: the C library's memchr looks for a byte that is not
    there, and is no slower than memory (glibc; a C library without vector code shows its own speed instead). The
    buffer is twice as large as all caches; when that is too much for the machine, nothing is measured.
    """
    size_bytes = max(BUFFER_BYTES_MIN, 2 * cache_bytes(root))
    room = free_bytes(memory)
    if room is None or size_bytes > min(room // ROOM_SHARE, BUFFER_BYTES_MAX):
        return None
    try:
        return read_bytes_per_s(size_bytes, threads=min(cpu.granted_cores, THREADS_MAX))
    except (OSError, AttributeError):  # no memory after all, or a C library without memchr
        return None


def read_bytes_per_s(size_bytes: int, *, threads: int, measure_s: float = MEASURE_S) -> float:
    """Read `size_bytes` of memory over and over; raises OSError when there is not so much."""
    memchr = ctypes.CDLL(None).memchr  # called without the GIL, so that threads read at once
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    slice_bytes = max(PIECE_BYTES, size_bytes // threads // PIECE_BYTES * PIECE_BYTES)
    barrier = Barrier(threads + 1)
    read = [0] * threads

    def run(index: int, start: int) -> None:
        # Writing first, in the thread that reads: untouched memory is one shared page of zeros, and lies nowhere.
        ctypes.memset(start, 1, slice_bytes)
        barrier.wait()
        end_s = time.perf_counter() + measure_s
        offset = 0
        while time.perf_counter() < end_s:
            memchr(start + offset, 0, PIECE_BYTES)
            read[index] += PIECE_BYTES
            offset = (offset + PIECE_BYTES) % slice_bytes
        barrier.wait()

    held = ctypes.c_char.from_buffer(mmap.mmap(-1, slice_bytes * threads))  # the memory goes when this does
    address = ctypes.addressof(held)
    crew = [
        Thread(target=run, args=(index, address + index * slice_bytes), name=f"bandwidth-{index}", daemon=True)
        for index in range(threads)
    ]
    for thread in crew:
        thread.start()
    barrier.wait()
    began_s = time.perf_counter()
    barrier.wait()
    took_s = time.perf_counter() - began_s
    for thread in crew:
        thread.join()
    return sum(read) / took_s


def cache_bytes(root: Path) -> int:
    """Return the size of all last-level caches together, 0 when unknown."""
    largest: dict[str, int] = {}
    for cpu in files.numbered(root / "sys/devices/system/cpu", "cpu"):
        found = (
            (_bytes(files.text(index / "size")), files.text(index / "shared_cpu_list") or cpu.name)
            for index in files.numbered(cpu / "cache", "index")
        )
        size_bytes, sharing = max(found, default=(0, ""))
        largest[sharing] = size_bytes
    return sum(largest.values())


def free_bytes(memory: Memory) -> int | None:
    """Return how much memory may be taken now: what is free, and what the cgroups have left."""
    known = [each for each in (memory.available_bytes, memory.room_bytes) if each is not None]
    return None if memory.available_bytes is None else min(known)


def _bytes(size: str | None) -> int:
    """Turn `32768K` into bytes."""
    found = re.fullmatch(r"(\d{1,12})K", size or "")
    return int(found.group(1)) * 1024 if found else 0
