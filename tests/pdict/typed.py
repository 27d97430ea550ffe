"""What a type checker must say of a ``PDict``: mypy reads this file, and no test runs it.

The lines at the end must be errors, because mypy reports an ignore comment where there is no error.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from persistcoll import PDict


def reading(ages: PDict[str, int]) -> None:
    a: int = ages["ann"]
    b: int | None = ages.get("ann")
    c: int = ages.get("ann", 0)
    d: int | str = ages.get("ann", "none")
    e: dict[str, int] = ages.get_many(["ann"])
    f: list[tuple[str, int]] = list(ages.scan("a"))
    g: dict[str, int] = ages.copy()
    h: dict[str, int] = ages | {"bob": 1}
    i: dict[str | int, int] = ages | {1: 1}
    j: MutableMapping[str, int] = ages
    k: str = next(iter(ages.keys()))
    l: int = next(iter(ages.values()))  # noqa: E741
    print(a, b, c, d, e, f, g, h, i, j, k, l)


def writing(ages: PDict[str, int]) -> None:
    a: int = ages.pop("ann")
    b: int | None = ages.pop("ann", None)
    c: int = ages.setdefault("ann", 1)
    d: tuple[str, int] = ages.popitem(last=False)
    print(a, b, c, d)
    ages.update({"ann": 1})
    ages.update([("ann", 1)], bob=2)
    ages.set_many({"ann": 1}, ttl=60)
    ages |= {"ann": 1}


def editing(people: PDict[str, dict[str, int]]) -> None:
    with people.edit("ann") as ann:
        ann["visits"] += 1


def opening() -> None:
    with PDict[str, int]("ages") as ages:
        reading(ages)
    other: PDict[tuple[str, int], str] = PDict("other", auto_commit=False)
    other.close()


def mistakes(ages: PDict[str, int]) -> None:
    ages[1] = 1  # type: ignore[index]
    ages["ann"] = "old"  # type: ignore[assignment]
    ages.update({"ann": "old"})  # type: ignore[arg-type]
    ages.set_many({1: 1})  # type: ignore[arg-type]
    ages.set("ann", "old")  # type: ignore[arg-type]
    ages.setdefault("ann", "old")  # type: ignore[arg-type]
    ages.get("ann").bit_length()  # type: ignore[union-attr]
    with ages.edit("ann") as age:
        age.append(1)  # type: ignore[attr-defined]
