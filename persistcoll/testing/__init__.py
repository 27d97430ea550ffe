"""For proving a store, and programs that use one.

- :data:`LAWS`: what every store obeys, as functions, for a :class:`StoreFactory` of yours;
  :data:`TABLE_LAWS` and :data:`MAPPING_LAWS`: what every table and every mapping obeys, for a
  :class:`TableFactory` and a :class:`MappingFactory`.
- :class:`StoreMachine`, :class:`TableMachine`, :class:`MappingMachine` and :class:`QueueMachine`: random
  sequences of operations, compared with a model. They need ``pip install 'persistcoll[testing]'``.
- :class:`FaultyDisk` and :class:`CrashDisk`: disks that fail on order, and that lose power;
  :func:`explore` tries everything that a power cut may leave.
- :class:`MemoryQueueStore` and :class:`MemoryRecordStore`: a store and a table that need no disk.
"""

from typing import TYPE_CHECKING, Any

from persistcoll.engine.memory.queue_store import MemoryQueueState, MemoryQueueStore
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.testing.explore import Exploration, Violation, explore
from persistcoll.testing.faults import Fault, FaultyDisk
from persistcoll.testing.law import Capabilities, Law
from persistcoll.testing.laws import LAWS, StoreFactory
from persistcoll.testing.mapping_bench import MappingFactory
from persistcoll.testing.mapping_laws import MAPPING_LAWS
from persistcoll.testing.power import CrashDisk
from persistcoll.testing.states import CrashState, Model, Operation
from persistcoll.testing.table_laws import TABLE_LAWS, FifoStores, TableFactory

if TYPE_CHECKING:
    from persistcoll.testing.machines import MappingMachine, QueueMachine, StoreMachine, TableMachine

__all__ = [
    "LAWS",
    "MAPPING_LAWS",
    "TABLE_LAWS",
    "Capabilities",
    "CrashDisk",
    "CrashState",
    "Exploration",
    "Fault",
    "FaultyDisk",
    "FifoStores",
    "Law",
    "MappingFactory",
    "MappingMachine",
    "MemoryQueueState",
    "MemoryQueueStore",
    "MemoryRecordState",
    "MemoryRecordStore",
    "Model",
    "Operation",
    "QueueMachine",
    "StoreFactory",
    "StoreMachine",
    "TableFactory",
    "TableMachine",
    "Violation",
    "explore",
]


def __getattr__(name: str) -> Any:
    # Only who asks for the machines needs hypothesis.
    if name in ("MappingMachine", "QueueMachine", "StoreMachine", "TableMachine"):
        from persistcoll.testing import machines

        return getattr(machines, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
