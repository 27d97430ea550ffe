"""Looking at a file queue without writing anything: for a user who may only read, on a read-only file system.

Every file is opened for reading. The only lock is the shared one by which every process asks for an instant
whether a consumer lives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NoReturn, cast

from persistcoll.disk.calls import OpenFile
from persistcoll.disk.path_checks import existing, refuse_if_others_may_write, refuse_network
from persistcoll.engine.contracts import Claim
from persistcoll.engine.forks import read_only_error
from persistcoll.errors import StoreKindError
from persistcoll.journal.consumer import Consumer
from persistcoll.journal.consumer_lock import ConsumerLock
from persistcoll.journal.cursor_view import CursorView
from persistcoll.journal.directory import CONSUMER_LOCK, CURSOR, INFO, look_at_info, refuse_serializer
from persistcoll.journal.journal import Journal
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail_view import TailView

__all__ = ["ReadOnlyQueueStore"]


class ReadOnlyQueueStore(JournalQueueStore):
    """A :class:`JournalQueueStore` that writes nothing: what would change something is a ``StorageError``."""

    def _prepare(self) -> None:
        path, wanted = self._path, self._wanted
        if not stat.S_ISDIR(existing(path, "look at").st_mode):
            raise StoreKindError(f"{path!r} is not a directory")
        if not wanted.allow_network_fs:
            refuse_network(path)
        if wanted.executes_code and not wanted.trust_directory:
            refuse_if_others_may_write((path, os.path.join(path, INFO)), wanted.serializer)

    def _open_files(self) -> None:
        disk, path = self._disk, self._path
        self._consumer = None
        info = look_at_info(disk, path)
        refuse_serializer(path, info, self._wanted)
        self.store_id = info.store_id
        with ExitStack() as undo:
            lock_path = os.path.join(path, CONSUMER_LOCK)
            file = undo.enter_context(OpenFile(disk, lock_path, os.O_RDONLY))
            self._lock = ConsumerLock(disk, file, lock_path, self._appending)
            self._place = JournalLocation(
                disk,
                path,
                info.store_id,
                info.serializer,
                on_corruption=self._wanted.on_corruption,
                landmarks=((lock_path, file.fd),),
            )
            self._observer = CursorView(self._place, os.path.join(path, CURSOR), self._lock, self._appending)
            undo.callback(self._observer.close)
            journal = TailView(self._place)
            undo.callback(journal.let_go)
            journal.refresh()
            self._observer.acknowledged()
            self._journal = cast(Journal, journal)
            undo.pop_all()

    def _check(self) -> None:
        super()._check()
        self._place.check()

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> NoReturn:
        raise read_only_error(repr(self._path))

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> NoReturn:
        raise read_only_error(repr(self._path))

    def acknowledge(self, ids: Sequence[int]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def release(self, claims: Sequence[Claim]) -> NoReturn:
        raise read_only_error(repr(self._path))

    def _consuming(self) -> Consumer:
        raise read_only_error(repr(self._path))

    _holding = _consuming
