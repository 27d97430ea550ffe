"""What the numbers were measured on: enough to compare two runs, and nothing that names the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

__all__ = ["describe", "file_system", "has_device", "installed"]

_PACKAGES = (
    "persistcoll",
    "persist-queue",
    "queuelib",
    "diskcache",
    "sqlitedict",
    "msgpack",
    "cbor2",
)
# Syncing there costs nothing and saves nothing.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


def describe(directory: str) -> dict[str, Any]:
    """The machine, the interpreter, the file system of ``directory``, the packages."""
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "file system": file_system(directory) or "unknown",
        "packages": {name: version for name in _PACKAGES if (version := installed(name))},
    }


def installed(package: str) -> str | None:
    """Its version, if it is there."""
    if package == "persistcoll":
        import persistcoll

        return persistcoll.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def file_system(directory: str) -> str | None:
    """The type of the file system that ``directory`` lies on, where the system tells."""
    if sys.platform != "linux":
        return None
    device = os.stat(directory).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields = line.split(" ")
                if fields[2] == name:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass
    return None


def has_device(directory: str) -> bool:
    """Whether a sync there waits for a device."""
    return file_system(directory) not in _IN_MEMORY
