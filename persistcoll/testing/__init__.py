"""Tools to test a store, and programs that use one.

- :data:`LAWS`: what every queue store obeys. Each law is a function that tests a :class:`StoreFactory` of
  yours. For record stores, pair stores, log stores and message stores there are :data:`RECORD_STORE_LAWS`,
  :data:`PAIR_STORE_LAWS`, :data:`LOG_STORE_LAWS` and :data:`MESSAGE_STORE_LAWS`, with a
  :class:`RecordStoreFactory`, a :class:`PairStoreFactory`, a :class:`LogStoreFactory` and a
  :class:`MessageStoreFactory`.
- :class:`StoreMachine`, :class:`LogStoreMachine`, :class:`MessageStoreMachine`, :class:`RecordStoreMachine`
  and :class:`PairStoreMachine`: random sequences of operations, compared with a model. They need
  ``pip install 'persistcoll[testing]'``.
- :class:`FaultyDisk` and :class:`CrashDisk`: disks that fail on order, and that lose power. :func:`explore`
  tries every state that a power cut may leave.
- :class:`MemoryQueueStore`, :class:`MemoryRecordStore`, :class:`MemoryLogStore` and
  :class:`MemoryMessageStore`: stores that need no disk. :class:`MemoryServerStore` and
  :class:`MemoryMessageServerStore`: a record store and a message store in memory that are as hard as those on
  a server.
"""

from typing import TYPE_CHECKING, Any

from persistcoll.engine.memory.log_store import MemoryLogState, MemoryLogStore
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.memory.queue_store import MemoryQueueState, MemoryQueueStore
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_message_store import (
    MemoryMessageServerState,
    MemoryMessageServerStore,
)
from persistcoll.engine.memory.server_record_store import MemoryServerState, MemoryServerStore
from persistcoll.testing.crash.disk import CrashDisk
from persistcoll.testing.crash.explore import Exploration, Violation, explore
from persistcoll.testing.crash.model import CrashState, Model, Operation
from persistcoll.testing.faults import Fault, FaultyDisk
from persistcoll.testing.harness import Capabilities, Law, Skipped
from persistcoll.testing.laws.log_store import LOG_STORE_LAWS
from persistcoll.testing.laws.log_store_harness import LogStoreFactory
from persistcoll.testing.laws.message_store import MESSAGE_STORE_LAWS
from persistcoll.testing.laws.message_store_harness import MessageStoreFactory
from persistcoll.testing.laws.pair_store import PAIR_STORE_LAWS
from persistcoll.testing.laws.pair_store_harness import PairStoreFactory
from persistcoll.testing.laws.queue_store import LAWS, StoreFactory
from persistcoll.testing.laws.record_store import RECORD_STORE_LAWS, FifoStores, RecordStoreFactory

if TYPE_CHECKING:
    from persistcoll.testing.machines import (
        LogStoreMachine,
        MessageStoreMachine,
        PairStoreMachine,
        RecordStoreMachine,
        StoreMachine,
    )

__all__ = [
    "LAWS",
    "LOG_STORE_LAWS",
    "MESSAGE_STORE_LAWS",
    "PAIR_STORE_LAWS",
    "RECORD_STORE_LAWS",
    "Capabilities",
    "CrashDisk",
    "CrashState",
    "Exploration",
    "Fault",
    "FaultyDisk",
    "FifoStores",
    "Law",
    "LogStoreFactory",
    "LogStoreMachine",
    "MemoryConnection",
    "MemoryLogState",
    "MemoryLogStore",
    "MemoryMessageServerState",
    "MemoryMessageServerStore",
    "MemoryMessageState",
    "MemoryMessageStore",
    "MemoryQueueState",
    "MemoryQueueStore",
    "MemoryRecordState",
    "MemoryRecordStore",
    "MemoryServerState",
    "MemoryServerStore",
    "MessageStoreFactory",
    "MessageStoreMachine",
    "Model",
    "Operation",
    "PairStoreFactory",
    "PairStoreMachine",
    "RecordStoreFactory",
    "RecordStoreMachine",
    "Skipped",
    "StoreFactory",
    "StoreMachine",
    "Violation",
    "explore",
]

# Former names, which stay valid.
_RENAMED = {
    "MAPPING_LAWS": "PAIR_STORE_LAWS",
    "TABLE_LAWS": "RECORD_STORE_LAWS",
    "MappingFactory": "PairStoreFactory",
    "MappingMachine": "PairStoreMachine",
    "TableFactory": "RecordStoreFactory",
    "TableMachine": "RecordStoreMachine",
}


def __getattr__(name: str) -> Any:
    present = _RENAMED.get(name, name)
    # Only an access to a machine imports hypothesis, because the laws work without it.
    if present.endswith("Machine") and present in __all__:
        from persistcoll.testing import machines

        return getattr(machines, present)
    if present in globals():
        return globals()[present]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
