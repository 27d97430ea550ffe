"""Another name for :mod:`persistcoll.serializers.cbor`: the one that persist-queue has for it."""

from __future__ import annotations

from persistcoll.serializers.cbor import dumps, executes_code, loads, name

__all__ = ["dumps", "executes_code", "loads", "name"]
