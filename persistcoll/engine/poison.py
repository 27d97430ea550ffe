"""Why the files of a store must not be used any more: a failed sync, or their end."""

from __future__ import annotations

from persistcoll.errors import ClosedError, StorageError

__all__ = ["Poison"]


class Poison:
    """The state of a handle that says whether its parts may go on.

    All parts of the handle share one object, and read it before they touch a file.

    After a failed sync it is not known what the device holds, so every call is refused until the store is
    opened again. A parent poisons its children; a child leaves its parent usable. Closed is a state of its
    own, and no failure.

    No lock protects the fields. Threads read them without one, and each field is set by one assignment.

    :ivar failure: the failure that poisoned the handle first; ``None`` if there was none.
    :ivar unusable_because: why every call is refused: the failure, or a ``ClosedError``; ``None`` if none is.
    """

    def __init__(self, parent: Poison | None = None) -> None:
        self.failure: StorageError | None = None
        self.unusable_because: StorageError | ClosedError | None = None
        self._children: dict[int, Poison] = {}  # by identity
        if parent is not None:
            parent._children[id(self)] = self

    def drop(self, child: Poison) -> None:
        """Tell ``child`` nothing any more, because its handle is closed."""
        self._children.pop(id(child), None)

    def set(self, failure: StorageError) -> None:
        """Refuse every call from now on, unless an earlier failure does."""
        self.failure = self.failure or failure
        self.unusable_because = self.unusable_because or failure
        for child in list(self._children.values()):
            child.set(failure)

    def close(self) -> None:
        """Refuse every call from now on, because the handle is closed."""
        self.unusable_because = ClosedError("closed")
        for child in list(self._children.values()):
            child.close()

    def unusable_error(self, where: str) -> StorageError | ClosedError:
        """Return the error for a call on the unusable store at ``where``."""
        cause = self.unusable_because
        if not isinstance(cause, StorageError):
            return ClosedError(f"the store in {where!r} is closed")
        error = StorageError(f"{cause}; close the store and open it again", cause.errno)
        error.__cause__ = cause
        return error
