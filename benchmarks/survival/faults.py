"""The faults: each happens to one contender in a fresh directory, and what was observed is an outcome."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.survival.contenders import CelerySetting, Child, Contender, Setting, wait_until
from benchmarks.survival.items import number_of, traces
from tests.crash.images import image

__all__ = ["FAULTS", "Outcome"]

_ROUNDS, _EACH = 20, 5
_CONSUMERS, _RACED = 4, 2_000
_STORED, _DAMAGED = 20, (5, 8, 11, 14, 17)
_SMALL, _LARGE, _LENGTH, _TAKEN = "8m", "64m", 1_000, 20


@dataclass
class Outcome:
    """What was observed.

    :ivar verdict: "yes", "partly", "no", or "-" where the fault cannot happen.
    :ivar text: what is to be said about it.
    :ivar counts: what both are made of.
    :ivar errors: what the contender said, without repetition.
    """

    verdict: str
    text: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def stored(self) -> dict[str, Any]:
        return asdict(self)


class Account:
    """What was put and must come out once, against what came out."""

    def __init__(self) -> None:
        self.put: set[int] = set()
        self.got: Counter[int | None] = Counter()
        self.unsure: set[int | None] = set()
        self.errors: Counter[str] = Counter()

    def note(self, found: Mapping[str, Any]) -> None:
        self.got.update(map(number_of, found["got"]))
        self.unsure.update(map(number_of, found.get("unsure", ())))
        self.complain(found["errors"])

    def complain(self, errors: Iterable[str | None]) -> None:
        self.errors.update(error for error in errors if error)

    @property
    def counts(self) -> dict[str, int]:
        return {
            "put": len(self.put),
            "lost": len(self.put - set(self.got) - self.unsure),
            "delivered twice": sum(count - 1 for number, count in self.got.items() if number in self.put),
            "delivered altered": self.got[None],
            "delivered, though the put failed": len(set(self.got) - self.put - {None}),
            "errors": self.errors.total(),
        }

    def wrong(self) -> str:
        """Return what is wrong, or nothing."""
        return ", ".join(
            f"{count} of {self.counts['put']} lost" if kind == "lost" else f"{count} {kind}"
            for kind, count in self.counts.items()
            if count and kind not in ("put", "errors")
        )

    def outcome(self, verdict: str = "", text: str = "", **more: int) -> Outcome:
        """Return an outcome; without a verdict it is that of the counts."""
        verdict = verdict or ("no" if self.wrong() else "yes")
        return Outcome(verdict, text or self.wrong(), self.counts | more, _distinct(self.errors))


def _distinct(errors: Iterable[str]) -> list[str]:
    """Return errors without those that differ by a number or a path alone."""
    kinds: dict[str, str] = {}
    for error in errors:
        words = [word for word in error.split() if "/" not in word]
        kinds.setdefault("".join(c for c in " ".join(words) if not c.isdigit()), " ".join(words))
    return sorted(kinds.values())[:5]


def _died(why: str = "the process died") -> dict[str, Any]:
    return {"got": [], "errors": [why]}


def _put(setting: Setting, account: Account, first: int, count: int, **how: Any) -> None:
    """Put in a process of its own. What returned is in the account, even if the process died next."""
    with setting.child() as child:
        answer = child.ask("put", first=first, count=count, **how)
        done = count if answer is None else answer["done"]
        if answer is not None:
            all_returned = answer["done"] == count
            assert not (all_returned and (answer["error"] or how.get("then") == "die")), "no fault happened"
            account.complain([answer["error"]])
            child.ask("close")
        account.put.update(range(first, first + done))


def kill_producer(contender: Contender, directory: Path) -> Outcome:
    """Kill the producer in the statement after its put returned, again and again."""
    account = Account()
    with contender.setting(directory / "data") as setting:
        for number in range(_ROUNDS):
            _put(setting, account, number * _EACH, _EACH, then="die")
        account.note(setting.get())
    return account.outcome(kills=_ROUNDS)


def kill_server(contender: Contender, directory: Path) -> Outcome:
    """Kill the server right after a put returned, and start it again, again and again."""
    if not contender.server:
        return Outcome("-", "there is no server")
    account = Account()
    with contender.setting(directory / "data") as setting:
        for number in range(_ROUNDS):
            _put(setting, account, number * _EACH, _EACH)
            setting.stop(signal.SIGKILL)
            setting.start()
        account.note(setting.get())
    return account.outcome(kills=_ROUNDS)


def kill_consumer(contender: Contender, directory: Path) -> Outcome:
    """Kill a consumer that holds an item, again and again; then see whether each held item comes back."""
    account = Account()
    with contender.setting(directory / "data") as setting:
        _put(setting, account, 0, 3 * _ROUNDS)
        if isinstance(setting, CelerySetting):
            return _kill_workers(setting, account)
        held = sum(_kill_holder(setting, account) for _ in range(_ROUNDS))
        account.note(setting.get())
        lost = account.counts["lost"]
        if lost:
            account.note(setting.get(recover=True))
    if lost and not account.counts["lost"]:
        text = f"{lost} of {held} stay claimed until code of yours brings them back"
        return account.outcome("partly", text, kills=held)
    return account.outcome("", f"{lost} of {held} held items lost" if lost else "", kills=held)


def _kill_holder(setting: Setting, account: Account) -> bool:
    with setting.child() as child:
        answer = child.ask("hold") or {"error": "the process died"}
        if answer["error"]:
            account.complain([answer["error"]])
            return False
        account.got[number_of(answer["acked"])] += 1
        assert child.answer() is None, "it lives"
        return True


def _kill_workers(setting: CelerySetting, account: Account) -> Outcome:
    """Kill the process of the pool that works on a task; then the worker with all of its processes."""
    kills = 0
    hold = setting.log.with_name("log.hold")
    with setting.worker() as worker:
        while kills < _ROUNDS:
            hold.touch()
            os.kill(_holder(setting, kills), signal.SIGKILL)
            kills += 1
        hold.unlink(missing_ok=True)
        got = setting.drained()
        assert worker.poll() is None, "the worker is gone"
    account.note({"got": got, "errors": []})
    lost = account.counts["lost"]
    hidden, gone = _kill_a_worker(setting, max(account.put) + 1)
    text = f"{lost} of {kills} held items lost if the process of the pool is killed; "
    text += f"if the whole worker is, {hidden} tasks are hidden until the visibility timeout"
    text += f", and {gone} of these is lost for good" if gone else ""
    counts = {"hidden after the death of the worker": hidden, "lost by the death of the worker": gone}
    return account.outcome("no" if lost else "partly", text, kills=kills, **counts)


def _holder(setting: CelerySetting, held: int) -> int:
    """Return the process that holds one more task than have been held."""
    assert wait_until(lambda: len(setting.lines("held ")) > held, 15), "the worker holds nothing"
    return int(setting.lines("held ")[-1].split()[1])


def _kill_a_worker(setting: CelerySetting, first: int) -> tuple[int, int]:
    """Kill a worker that works on one task and has claimed others.

    :return: how many tasks another worker does not get in 20 seconds, and how many of these it does not get
        after the visibility timeout either, which is an hour by default.
    """
    account, hold = Account(), setting.log.with_name("log.hold")
    setting.call("FLUSHALL")
    setting.log.unlink(missing_ok=True)
    _put(setting, account, first, _EACH)
    hold.touch()
    with setting.worker():
        wait_until(lambda: setting.lines("held ") and setting.call("LLEN", "celery") in ("0", "1"), 20)
    hold.unlink(missing_ok=True)
    with setting.worker():
        account.note({"got": setting.drained(), "errors": []})
    hidden = account.counts["lost"]
    with setting.worker(SURVIVAL_VISIBILITY="1"):
        account.note({"got": setting.drained(), "errors": []})
    return hidden, account.counts["lost"]


def power_cut(contender: Contender, directory: Path) -> Outcome:
    """Cut the power of an ext4 file system in the statement after a put returned, again and again."""
    account, refused = Account(), 0
    with image(directory, "ext4", "") as disk:
        for number in range(_ROUNDS):
            # What cannot be used any more is put aside.
            data = disk.place / f"data{refused}"
            with contender.setting(data) as setting:
                _put(setting, account, number * _EACH, _EACH, then=str(disk.place))
            disk.unmount()
            disk.mount()
            with contender.setting(data) as setting:
                found = setting.get() if setting.alive else _died("the server does not start")
                account.note(found)
            refused += bool(found["errors"])
    text = account.wrong()
    text += f"; {refused} of {_ROUNDS} times an error afterwards" if refused else ""
    return account.outcome("", text, cuts=_ROUNDS, refused=refused)


def full_disk(contender: Contender, directory: Path) -> Outcome:
    """Fill a disk by puts until one fails; get; make room; put and get again."""
    account, place = Account(), directory / "small"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", str(place))
    try:
        with contender.setting(place / "data") as setting, setting.child() as child:
            filled = child.ask("fill", first=0, length=_LENGTH) or {"failed": 0, "error": "the process died"}
            if filled["error"] is None:
                return Outcome("no", "no put failed", {"put": filled["failed"]})
            account.put.update(range(filled["failed"]))
            account.complain([filled["error"]])
            _fill_up(place)
            taken = _take(setting, child, account)
            (place / "ballast").unlink()
            _mount("-o", f"remount,size={_LARGE}", str(place))
            if died := not setting.alive:
                setting.start()
            again = wait_until(lambda: _put_one(child, account, filled["failed"] + 1), 30)
            child.ask("close")
            account.note(setting.get())
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
    return _of_full_disk(account, taken, died, again)


def _take(setting: Setting, child: Child, account: Account) -> int:
    """Get some items on the full disk; return how many were got and acknowledged."""
    if not setting.alive:
        found = _died("the server is gone")
    elif isinstance(setting, CelerySetting):
        found = setting.get()
    else:
        found = child.ask("get", count=_TAKEN) or _died()
    account.note(found)
    return len(found["got"])


def _put_one(child: Child, account: Account, number: int) -> bool:
    """Try a put, which Redis refuses until its next try to write a snapshot."""
    answer = child.ask("put", first=number, count=1) or {"done": 0, "error": "the process died"}
    account.complain([answer["error"]])
    account.put.update([number] * answer["done"])
    return bool(answer["done"])


def _of_full_disk(account: Account, taken: int, died: bool, again: bool) -> Outcome:
    goes_on = taken >= _TAKEN
    said = [
        account.wrong() or "nothing lost",
        "the server ends" if died else "gets go on" if goes_on else "no get until there is room",
        *([] if again else ["puts fail still when there is room"]),
    ]
    good = not account.wrong() and again
    verdict = "no" if not good else "yes" if goes_on else "partly"
    return account.outcome(verdict, ", ".join(said), **{"got on the full disk": taken})


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _fill_up(place: Path) -> None:
    with contextlib.suppress(OSError), open(place / "ballast", "wb", 0) as ballast:
        while ballast.write(bytes(100)):
            pass


def processes(contender: Contender, directory: Path) -> Outcome:
    """Let several processes get at the same time, and one more open the queue meanwhile."""
    account = Account()
    with contender.setting(directory / "data") as setting, contextlib.ExitStack() as stack:
        _put(setting, account, 0, _RACED)
        if isinstance(setting, CelerySetting):
            for _ in range(_CONSUMERS):
                stack.enter_context(setting.worker())
            wait_until(lambda: setting.lines("got "), 30)
            account.note({"got": setting.drained(), "errors": []})
            return account.outcome(processes=_CONSUMERS)
        children = [stack.enter_context(setting.child()) for _ in range(_CONSUMERS)]
        for child in children:
            child.send("race")
        children.append(stack.enter_context(setting.child()))
        children[-1].send("race")
        found = [child.answer() or _died() for child in children]
        for one in found:
            account.note(one)
        for child in children:
            child.ask("close")
        account.note(setting.get())
    served, errors = sum(1 for one in found if one["got"]), account.errors.total()
    if served == 1 and errors and not account.wrong():
        return account.outcome("partly", "one process gets, and the others are refused", processes=_CONSUMERS)
    text = ", ".join(filter(None, [account.wrong(), f"{errors} errors" if errors else ""]))
    return account.outcome("", text, processes=_CONSUMERS)


def damage(contender: Contender, directory: Path) -> Outcome:
    """Flip a bit in the stored bytes of some items, while no process has them open."""
    account = Account()
    with contender.setting(directory / "data") as setting:
        _put(setting, account, 0, _STORED)
        setting.stop()
        for number in _DAMAGED:
            assert _flip(setting.directory, number), "the item was not found in the files"
        starts = setting.start()
        found = setting.get() if starts else _died("the server does not start")
        account.note(found)
        lost = account.counts["lost"]
        if found["errors"] and starts:
            account.note(setting.get(skip=True))
    verdict, text = _of_damage(account.counts, lost)
    more = {"damaged": len(_DAMAGED), "lost before the damage was skipped": lost}
    return account.outcome(verdict, text, **more)


def _of_damage(counts: Mapping[str, int], before: int) -> tuple[str, str]:
    lost, damaged, altered = counts["lost"], len(_DAMAGED), counts["delivered altered"]
    if altered:
        return "no", f"{altered} of {damaged} damaged items delivered, altered"
    if not counts["errors"]:
        return "no", f"{lost} of {_STORED} lost without an error"
    if lost > damaged:
        return "partly", f"an error, and {lost} of {_STORED} cannot be got"
    return "yes", "an error, and the others " + ("when the program skips it" if before > lost else "come")


def _flip(directory: Path, number: int) -> int:
    """Flip a bit of the item in each place where it is stored; return how many places there are."""
    for trace in traces(number):
        flips = 0
        for path in filter(Path.is_file, directory.rglob("*")):
            data = bytearray(path.read_bytes())
            at = data.find(trace)
            while at >= 0:
                data[at + number % len(trace)] ^= 1
                flips += 1
                at = data.find(trace, at + 1)
            path.write_bytes(data)
        if flips:
            return flips
    return 0


FAULTS: Mapping[str, Callable[[Contender, Path], Outcome]] = {
    "kill producer": kill_producer,
    "kill server": kill_server,
    "kill consumer": kill_consumer,
    "power cut": power_cut,
    "full disk": full_disk,
    "processes": processes,
    "damage": damage,
}
