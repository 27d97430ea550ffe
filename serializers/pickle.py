"""Nearly any Python object, by :mod:`pickle`, protocol 5. The default.

**Loading a pickle runs whatever code its writer put into it.** Whoever can write the store can run
code in every process that reads it. Stores refuse directories that others may write, and
:func:`~persistcoll.serializers.signed` closes the gap where storage is shared.

What does not round-trip:

- functions and classes are stored by name: the reading process must be able to import them;
- lambdas, open files, locks, generators are refused (``PicklingError`` or ``TypeError``);
- an object that changed its class between ``put`` and ``get`` comes back as the new class
  understands the old state.

An item costs what ``pickle.dumps`` and ``pickle.loads`` cost. Thread-safe.

>>> from persistcoll.serializers import pickle
>>> pickle.loads(pickle.dumps({"when": (1, 2)}))
{'when': (1, 2)}
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["dumps", "executes_code", "loads", "name"]

name = "pickle"
executes_code = True

_dumps = pickle.dumps

loads: Callable[[bytes], Any] = pickle.loads


def dumps(obj: Any, /) -> bytes:
    """``obj`` as a pickle of protocol 5."""
    # Pinned: the default protocol grows with Python, and an older Python may read the store. By
    # position, which is faster than a partial with a keyword.
    return _dumps(obj, 5)
