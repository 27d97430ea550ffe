"""Nearly any Python object, by :mod:`pickle`, protocol 5. The default.

**Loading a pickle runs the code that its writer put into it.** Anybody with write access to the store can run
code in every process that reads it. Stores refuse directories that others may write to.
:func:`~persistcoll.serializers.signed` closes the gap where storage is shared.

What does not round-trip:

- functions and classes are stored by name: the reading process must be able to import them;
- lambdas, open files, locks and generators are refused (``PicklingError`` or ``TypeError``);
- an object whose class changed between ``put`` and ``get`` becomes what the new class makes of the old state.

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
    """Return ``obj`` as a pickle of protocol 5."""
    # Pinned, because the default protocol grows with Python, and an older Python may read the store. By
    # position, which is faster than a partial with a keyword.
    return _dumps(obj, 5)
