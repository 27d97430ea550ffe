"""What a test may need of its machine.

With ``@pytest.mark.needs("root", "mkfs.xfs", "import:msgpack")`` on a test, or :func:`need` in a fixture, the
test is skipped where one of these is missing. It fails instead where the environment variable ``CI`` says
that everything must be there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable

import pytest

__all__ = ["missing", "need"]

# mkfs and losetup lie here, even where a user's PATH does not name the directory.
_PROGRAMS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing(wanted: Iterable[str]) -> list[str]:
    """Return which of these are missing: ``"root"``, ``"import:module"``, any other name is a program."""
    return [what for what in dict.fromkeys(wanted) if not _there(what)]


def need(*wanted: str) -> None:
    """Skip (in CI: fail) the running test where one of these is missing."""
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
