"""What the run ran on, and how much memory it took."""

import contextlib
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorakit.kernels.chosen import kernels_of

VERSIONS = ("lorakit", "torch", "transformers", "safetensors", "datasets")


def versions() -> dict[str, str]:
    """Versions of what decides a run's figures; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine(device: torch.device, model: Any = None) -> dict[str, Any]:
    """Processor, cores, memory and device, as plain values; of a loaded model also its kernels."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    described = {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(device),
    }
    if model is not None:
        described["kernels"] = kernels_of(model).name
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def peak_memory(device: torch.device) -> int:
    """Largest device memory allocated, or largest resident size of this process, in bytes.

    On Linux it is VmHWM and not getrusage's ru_maxrss: that one begins, after fork and exec, at
    the size of the program that started this one.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        return _kilobytes(status, "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device: what could be taken without swapping.

    Where the system does not say (there is no /proc/meminfo) it is all of the machine's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return _kilobytes(meminfo, "MemAvailable")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold in all: what it has now, and what is still free.

    On CUDA of the device's memory, elsewhere of the machine's (of the control group's where
    that is less).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo, status = Path("/proc/meminfo"), Path("/proc/self/status")
    if meminfo.exists() and status.exists():
        free_now = _kilobytes(meminfo, "MemAvailable")
        limits.append(free_now + _kilobytes(status, "VmRSS"))
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)


def _kilobytes(file: Path, name: str) -> int:
    """The bytes of a line such as 'VmRSS:  1234 kB'."""
    line = next(x for x in file.read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1]) * 1024
