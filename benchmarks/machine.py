"""The machine of a run: enough to compare two runs, and nothing that identifies it."""

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
    "litequeue",
    "huey",
    "redis",
    "msgpack",
    "cbor2",
)
# A sync costs nothing there and saves nothing.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


def describe(directory: str) -> dict[str, Any]:
    """Return the machine, the interpreter, the file system of ``directory`` and the packages."""
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
    """Return the version of a package, or ``None`` if it is not installed."""
    if package == "persistcoll":
        import persistcoll

        return persistcoll.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def file_system(directory: str) -> str | None:
    """Return the type of the file system of ``directory``, or ``None`` if the system does not say."""
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
    """Tell whether a sync in ``directory`` waits for a device."""
    return file_system(directory) not in _IN_MEMORY
