"""What the run ran on, and how much memory it took."""

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

VERSIONS = ("lorakit", "torch", "transformers", "safetensors", "datasets")


def versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and device, as plain values."""
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
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def peak_memory(device: torch.device) -> int:
    """Largest device memory allocated, or largest resident size of this process, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
