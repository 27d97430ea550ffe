"""Work in other processes: started anew and never forked, as a second program is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["answer", "memory_of_child", "resident", "running", "together"]

_PATIENCE = 120.0
_context = multiprocessing.get_context("spawn")


@contextmanager
def running(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Connection]]:
    """Run ``work(connection, *arguments)`` in a process for each tuple; give the other ends."""
    ours: list[Connection] = []
    processes = []
    try:
        for one in arguments:
            here, there = _context.Pipe()
            ours.append(here)
            process = _context.Process(target=work, args=(there, *one))
            process.start()
            there.close()
            processes.append(process)
        yield ours
    finally:
        for connection in ours:
            connection.close()
        for process in processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def answer(connection: Connection) -> Any:
    """Return what the process sends next.

    :raises EOFError: it died.
    :raises TimeoutError: it is silent.
    """
    if not connection.poll(_PATIENCE):
        raise TimeoutError("a child process does not answer")
    return connection.recv()


def together(connections: Sequence[Connection]) -> list[Any]:
    """Let processes go on at the same time, when each of them is ready, and return what they send then."""
    for connection in connections:
        answer(connection)
    for connection in connections:
        connection.send("go")
    return [answer(connection) for connection in connections]


def memory_of_child(work: Callable[..., Any], *arguments: Any) -> float | None:
    """Return how many KiB of a process were resident at most while it ran ``work``.

    :return: ``None`` if the system does not say.
    """
    with running(_report_memory, [(work, arguments)]) as (connection,):
        peak: float | None = answer(connection)
        return peak


def _report_memory(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    work(*arguments)
    connection.send(resident("VmHWM"))


def resident(name: str) -> float | None:
    """Return this process's resident memory in KiB; ``None`` if the system does not say.

    :param name: ``"VmRSS"`` for the present value, ``"VmHWM"`` for the maximum so far.
    """
    # Not getrusage, because its maximum of a new program begins with that of the program that started it.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(f"{name}:"):
                    return float(line.split()[1])
    except OSError:
        pass
    return None
