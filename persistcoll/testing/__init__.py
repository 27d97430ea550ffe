"""For proving a store, and programs that use one.

- :data:`LAWS`: what every store obeys, as functions, for a :class:`StoreFactory` of yours.
- :class:`StoreMachine` and :class:`QueueMachine`: random sequences of operations, compared with a
  model. They need ``pip install 'persistcoll[testing]'``.
- :class:`FaultyDisk` and :class:`CrashDisk`: disks that fail on order, and that lose power;
  :func:`explore` tries everything that a power cut may leave.
- :class:`MemoryStore`: a store that needs no disk.
"""

from typing import TYPE_CHECKING, Any

from persistcoll.engine.memory import MemoryState, MemoryStore
from persistcoll.testing.explore import Exploration, Violation, explore
from persistcoll.testing.faults import Fault, FaultyDisk
from persistcoll.testing.laws import LAWS, Capabilities, Law, StoreFactory
from persistcoll.testing.power import CrashDisk
from persistcoll.testing.states import CrashState, Model, Operation

if TYPE_CHECKING:
    from persistcoll.testing.machines import QueueMachine, StoreMachine

__all__ = [
    "LAWS",
    "Capabilities",
    "CrashDisk",
    "CrashState",
    "Exploration",
    "Fault",
    "FaultyDisk",
    "Law",
    "MemoryState",
    "MemoryStore",
    "Model",
    "Operation",
    "QueueMachine",
    "StoreFactory",
    "StoreMachine",
    "Violation",
    "explore",
]


def __getattr__(name: str) -> Any:
    # Only who asks for the machines needs hypothesis.
    if name in ("QueueMachine", "StoreMachine"):
        from persistcoll.testing import machines

        return getattr(machines, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
