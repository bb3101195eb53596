"""`python nvml.py [--follow] [LIBRARY]`: ask NVIDIA's management library and print what it says as JSON.

With --follow it is asked for what the GPUs do now, again and again: a line for each line that comes.

A program of its own, of the standard library alone, because a sick driver can hold a caller for ever: the probe
runs it as a child and leaves it behind. Structures and numbers are those of nvml.h (docs.nvidia.com/deploy/nvml-api).
"""

import ctypes
import json
import sys
from ctypes import byref, c_char, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from typing import Any

SUCCESS, NOT_SUPPORTED = 0, 3
GPUS_MAX = 64
NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
CLOCK_SM = 1  # NVML_CLOCK_SM
TEMPERATURE_GPU = 0  # NVML_TEMPERATURE_GPU


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Pci(ctypes.Structure):
    """nvmlPciInfo_t; pci_device_id has the device in its upper and the vendor in its lower half."""

    _fields_ = (
        ("bus_id_legacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pci_device_id", c_uint),
        ("pci_subsystem_id", c_uint),
        ("bus_id", c_char * 32),
    )


class Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last moment in which kernels ran, in which memory was read or written."""

    _fields_ = (("gpu", c_uint), ("memory", c_uint))


def ask(library: str) -> list[dict[str, Any]]:
    """Return what the library says of each GPU we may use, None for what it does not know.

    Raises OSError without the library, and when it does not start.
    """
    nvml, indexes = _begin(library)
    version = create_string_buffer(VERSION_BYTES)
    driver = _text(nvml.nvmlSystemGetDriverVersion(version, c_uint(VERSION_BYTES)), version)
    return [_gpu(nvml, index) | {"driver_version": driver} for index in indexes]


def follow(library: str) -> None:
    """For each line that comes print one with what each GPU does; ends with the input. Raises OSError as `ask` does."""
    nvml, indexes = _begin(library)
    for _ in iter(sys.stdin.buffer.readline, b""):
        sys.stdout.write(json.dumps([_activity(nvml, index) for index in indexes]) + "\n")
        sys.stdout.flush()


def _begin(library: str) -> tuple[ctypes.CDLL, range]:
    nvml = ctypes.CDLL(library)
    if status := nvml.nvmlInit_v2():
        raise OSError(f"nvmlInit_v2 answered {status}")
    count = c_uint()
    if status := nvml.nvmlDeviceGetCount_v2(byref(count)):
        raise OSError(f"nvmlDeviceGetCount_v2 answered {status}")
    return nvml, range(min(count.value, GPUS_MAX))


def _gpu(nvml: ctypes.CDLL, index: int) -> dict[str, Any]:
    gpu = c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(gpu)) != SUCCESS:  # fallen off the bus, as one says
        return {}
    name, memory, pci = create_string_buffer(NAME_BYTES), Memory(), Pci()
    minor, major_capability, minor_capability = c_uint(), c_int(), c_int()
    asked_name = nvml.nvmlDeviceGetName(gpu, name, c_uint(NAME_BYTES))
    asked_memory = nvml.nvmlDeviceGetMemoryInfo(gpu, byref(memory))
    asked_pci = nvml.nvmlDeviceGetPciInfo_v3(gpu, byref(pci))
    asked_minor = nvml.nvmlDeviceGetMinorNumber(gpu, byref(minor))
    asked_capability = nvml.nvmlDeviceGetCudaComputeCapability(gpu, byref(major_capability), byref(minor_capability))
    return {
        "name": _text(asked_name, name),
        "memory_bytes": memory.total if asked_memory == SUCCESS else None,
        "shares_memory": asked_memory == NOT_SUPPORTED,
        "device_id": f"0x{pci.pci_device_id >> 16:04x}" if asked_pci == SUCCESS else None,
        "minor": minor.value if asked_minor == SUCCESS else None,
        "capability": f"{major_capability.value}{minor_capability.value}" if asked_capability == SUCCESS else None,
    }


def _activity(nvml: ctypes.CDLL, index: int) -> dict[str, Any]:
    """Return what a GPU does now, by the name of its device file; None for what the library does not tell of it."""
    gpu = c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(gpu)) != SUCCESS:
        return {}
    minor = _number(nvml, "nvmlDeviceGetMinorNumber", gpu)
    rates, memory = Utilization(), Memory()
    milliwatts = _number(nvml, "nvmlDeviceGetPowerUsage", gpu)
    return {
        "name": f"nvidia{index if minor is None else minor}",
        "busy_percent": rates.gpu if _told(nvml, "nvmlDeviceGetUtilizationRates", gpu, byref(rates)) else None,
        "memory_used_bytes": memory.used if _told(nvml, "nvmlDeviceGetMemoryInfo", gpu, byref(memory)) else None,
        "clock_mhz": _number(nvml, "nvmlDeviceGetClockInfo", gpu, c_uint(CLOCK_SM)),
        "clock_max_mhz": _number(nvml, "nvmlDeviceGetMaxClockInfo", gpu, c_uint(CLOCK_SM)),
        "celsius": _number(nvml, "nvmlDeviceGetTemperature", gpu, c_uint(TEMPERATURE_GPU)),
        "watts": None if milliwatts is None else milliwatts / 1000,
    }


def _number(nvml: ctypes.CDLL, function: str, *arguments: Any) -> int | None:
    number = c_uint()
    return number.value if _told(nvml, function, *arguments, byref(number)) else None


def _told(nvml: ctypes.CDLL, function: str, *arguments: Any) -> bool:
    """Call a function of the library and return whether it answered; older ones lack some."""
    found = getattr(nvml, function, None)
    return found is not None and found(*arguments) == SUCCESS


def _text(status: int, buffer: ctypes.Array[c_char]) -> str | None:
    return buffer.value.decode("utf-8", "replace") if status == SUCCESS else None


if __name__ == "__main__":
    followed = "--follow" in sys.argv
    given = next((each for each in sys.argv[1:] if each != "--follow"), "libnvidia-ml.so.1")
    if followed:
        follow(given)
    else:
        json.dump(ask(given), sys.stdout)
