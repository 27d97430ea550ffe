"""Only an access to the machines needs hypothesis."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hypothesis":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import persistcoll.testing
from persistcoll.testing import LAWS, CrashDisk, FaultyDisk, MemoryQueueStore, StoreFactory, explore

assert persistcoll.testing.TABLE_LAWS is persistcoll.testing.RECORD_STORE_LAWS
assert persistcoll.testing.MappingFactory is persistcoll.testing.PairStoreFactory

try:
    persistcoll.testing.StoreMachine
except ImportError as error:
    assert "pip install 'persistcoll[testing]'" in str(error), error
else:
    raise AssertionError("no error")
try:
    persistcoll.testing.no_such_thing
except AttributeError as error:
    assert "no_such_thing" in str(error), error
else:
    raise AssertionError("no error")
assert "hypothesis" not in sys.modules
"""


def test_without_hypothesis():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_nothing_imports_hypothesis_unasked():
    text = "import sys, persistcoll, persistcoll.testing; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)
