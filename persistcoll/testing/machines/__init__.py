"""Random sequences of operations, each compared with a model.

:class:`StoreMachine`, :class:`LogStoreMachine`, :class:`MessageStoreMachine`, :class:`RecordStoreMachine` and
:class:`PairStoreMachine` are state machines of hypothesis, which shortens a failing sequence to the shortest
one that still fails. A test is a subclass that names the stores to test::

    class MyStoreMachine(StoreMachine):
        def stores(self):
            return MyStores()  # a StoreFactory, new and empty

    TestMyStore = MyStoreMachine.TestCase

Invariant: every operation has the same result as the model's, and after each operation everything that can be
read is equal.
"""

from persistcoll.testing.machines.log_store import LogStoreMachine
from persistcoll.testing.machines.message_store import MessageStoreMachine
from persistcoll.testing.machines.pair_store import PairStoreMachine
from persistcoll.testing.machines.queue_store import StoreMachine
from persistcoll.testing.machines.record_store import RecordStoreMachine

__all__ = ["LogStoreMachine", "MessageStoreMachine", "PairStoreMachine", "RecordStoreMachine", "StoreMachine"]
