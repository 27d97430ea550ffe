"""What a test may need of its machine.

``@pytest.mark.needs("root", "mkfs.xfs", "import:msgpack")`` on a test, or :func:`need` in a fixture: skipped
where it is lacking, failed where the environment variable ``CI`` says that everything ought to be there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable

import pytest

__all__ = ["missing", "need"]

# Where mkfs and losetup lie, though a user's PATH may not say so.
_PROGRAMS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing(wanted: Iterable[str]) -> list[str]:
    """Name what is lacking: ``"root"``, ``"import:module"``, anything else a program."""
    return [what for what in dict.fromkeys(wanted) if not _there(what)]


def need(*wanted: str) -> None:
    """Skip (in CI: fail) the running test where one of these is lacking."""
    lacking = missing(wanted)
    if lacking:
        pytest.skip("needs " + ", ".join(lacking))


def _there(what: str) -> bool:
    if what == "root":
        return hasattr(os, "geteuid") and os.geteuid() == 0
    kind, _, name = what.partition(":")
    if kind == "import" and name:
        return importlib.util.find_spec(name) is not None
    return shutil.which(what, path=_PROGRAMS) is not None
