"""What the serializers and the wrappers around them cost in a queue."""

from __future__ import annotations

import pickle
from typing import Any

from benchmarks import contenders
from benchmarks.contenders import ITEM
from benchmarks.model import Contender, Figure, Scenario, Sizes
from persistcoll.serializers import compressed, signed

__all__ = ["serializers"]

_LIBRARIES = {"msgpack": "msgpack", "cbor": "cbor2"}


def serializers(sizes: Sizes, root: str) -> Scenario:
    """Measure the same dict through each of them."""
    formats: dict[str, Any] = {"raw": "raw", "pickle": "pickle", "json": "json"}
    missing = []
    for name, library in _LIBRARIES.items():
        if contenders.have(library):
            formats[name] = name
        else:
            missing.append(library)
    formats["signed(pickle)"] = signed("pickle", b"a key of the benchmarks")
    formats["compressed(pickle)"] = compressed("pickle")
    count = sizes.operations

    def contender(name: str, serializer: Any) -> Contender:
        item = pickle.dumps(ITEM, 5) if name == "raw" else ITEM
        options = {"serializer": serializer, "durability": "process", "item": item}
        return Contender(name, "process", lambda at: contenders.ours_phases(at, count, **options))

    def beside_pickle(name: str) -> Figure:
        return Figure(
            f"{name} / pickle, put + get + task_done",
            lambda numbers: _whole(name, numbers) / _whole("pickle", numbers),
        )

    return Scenario(
        name="serializers",
        compared=(
            "put + get + task_done of one dict (raw: its pickle) with each serializer and wrapper."
            " Each survives the death of the process. For information."
        ),
        contenders=[contender(name, serializer) for name, serializer in formats.items()],
        figures=[beside_pickle(name) for name in formats if name != "pickle"],
        missing=missing,
    )


def _whole(name: str, numbers: Any) -> float:
    result: float = numbers[f"{name}: put"] + numbers[f"{name}: get + task_done"]
    return result
