"""File systems in image files, whose power is cut: everything not yet written is dropped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.needs import need

__all__ = ["IDS", "KINDS", "PLAIN", "Image", "image", "program"]

KINDS = [("ext4", ""), ("ext4", "noauto_da_alloc"), ("xfs", "")]
"""File systems, and their mount options."""
IDS = ["ext4", "ext4-noauto_da_alloc", "xfs"]
PLAIN = [kind for kind, options in KINDS if not options]
"""Those for SQLite: ext4's other mount options concern renames, which SQLite does not make."""

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_NO_LOG_FLUSH = struct.pack("I", 2)
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def program(*command: str) -> None:
    words = [shutil.which(command[0], path=_PATH) or command[0], *command[1:]]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}"


class Image:
    """A file system in a file."""

    def __init__(self, directory: Path, kind: str, options: str) -> None:
        self.file, self.place = directory / "image", directory / "mounted"
        self.options = ",".join(filter(None, ["loop", options]))
        self.place.mkdir()
        # xfs has a least size; the file is sparse.
        with open(self.file, "wb") as file:
            file.truncate((300 if kind == "xfs" else 64) << 20)
        program(f"mkfs.{kind}", "-q", *(["-F"] if kind == "ext4" else []), str(self.file))

    def mount(self) -> None:
        program("mount", "-o", self.options, str(self.file), str(self.place))

    def unmount(self) -> None:
        program("umount", str(self.place))

    def cut_power(self) -> None:
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)


@contextlib.contextmanager
def image(directory: Path, kind: str, options: str) -> Iterator[Image]:
    made = Image(directory, kind, options)
    try:
        made.mount()
    except AssertionError as error:
        if "loop" in str(error):
            need("a loop device")  # A need that is never met: the test is skipped, and fails in CI.
        raise
    try:
        yield made
    finally:
        # Unmount however the test ended, even while a process has a file open there.
        umount = shutil.which("umount", path=_PATH) or "umount"
        subprocess.run([umount, "-l", str(made.place)], check=False, stderr=subprocess.DEVNULL)
