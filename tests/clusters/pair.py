"""A primary of PostgreSQL and its standby, which takes over when the primary is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from persistcoll.servers.address import POSTGRESQL, Address
from tests.queues.waits import until
from tests.servers.own_server import OwnServer, program_of

__all__ = ["Pair"]

_SECONDS = 60.0  # far more than anything here lasts
_OPTIONS = ("wal_retrieve_retry_interval=100ms", "wal_sender_timeout=0", "max_wal_size=64MB")


class _Standby(OwnServer):
    """A copy of another server, which follows it until it is promoted."""

    def __init__(self, primary: OwnServer, port: int | None) -> None:
        self._source = primary.address
        super().__init__(POSTGRESQL, *_OPTIONS, port=port)

    def _initialize(self) -> None:
        program = program_of("pg_basebackup") or pytest.skip("needs pg_basebackup")
        ((host, port),) = self._source.hosts
        self._run_program(
            [
                program, f"--pgdata={self.data}", f"--host={host}", f"--port={port}", "--username=postgres",
                "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
            ]
        )  # fmt: skip

    def _make(self) -> None:
        self._initialize()
        self.start()  # The database is that of its primary.


class Pair:
    """A primary and its standby.

    When the primary has failed, a new standby comes to the address where it was. A commit
    waits for the standby. While there is none, it waits for nobody.

    :ivar primary: the server that may be written to.
    :ivar addresses: of both; they stay the same.
    """

    def __init__(self) -> None:
        self._synchronous = True
        self.primary = OwnServer(POSTGRESQL, *_OPTIONS)
        self._servers = [self.primary]
        try:
            self._standby = self._follow(None)
        except BaseException:
            self.close()
            raise
        self.addresses: list[Address] = [self.primary.address, self._standby.address]

    def _follow(self, port: int | None) -> OwnServer:
        """Start a standby of the primary, and let commits wait for it."""
        standby = _Standby(self.primary, port)
        self._servers.append(standby)
        until(lambda: self._states() == [("streaming",)], _SECONDS)
        if self._synchronous:
            self._wait_for("*")
            until(lambda: self._states("sync_state") == [("sync",)], _SECONDS)
        return standby

    def _wait_for(self, standbys: str) -> None:
        self.primary.run(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'", "postgres")
        self.primary.run("SELECT pg_reload_conf()", "postgres")

    def commit_alone(self) -> None:
        """Let commits wait for no standby from now on."""
        self._synchronous = False
        self._wait_for("")

    def _states(self, column: str = "state") -> list[Any]:
        return self.primary.run(f"SELECT {column} FROM pg_stat_replication")

    def stop_sending(self) -> None:
        """Let the primary send nothing to the standby any more, until it has failed."""
        for (pid,) in self._states("pid"):
            os.kill(pid, signal.SIGSTOP)

    def end_what_waits(self) -> None:
        """Wait for a commit that waits for the standby, and end its connection, as an administrator does.

        From then on others see what it has committed.
        """
        waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: bool(self.primary.run(f"SELECT pg_terminate_backend(pid) {waits}")), _SECONDS)

    def fail_over(self, lag: float = 0.0) -> float:
        """Kill the primary, promote the standby, and give it one of its own.

        :param lag: for so many seconds before its end, the primary sends nothing to the standby.
        :return: when the primary was dead, by ``time.monotonic``.
        """
        self.stop_sending()
        threading.Event().wait(lag)
        failed = self.primary
        failed.kill()
        killed = time.monotonic()
        self.primary = self._standby
        ((count,),) = self.primary.run("SELECT pg_promote()", "postgres")
        assert count, "the standby is not promoted"
        if self._synchronous:
            self._wait_for("")  # Its settings are a copy of those of the one that had a standby.
        self._servers.remove(failed)
        failed.close()
        self._standby = self._follow(failed.address.hosts[0][1])
        return killed

    def restart_standby(self) -> None:
        """Kill the standby and start it again. What is committed meanwhile waits for it."""
        self._standby.kill()
        self._standby.start()
        until(lambda: self._states() == [("streaming",)], _SECONDS)

    def close(self) -> None:
        """Stop both, and remove their directories."""
        for server in reversed(self._servers):  # A primary that stops waits for its standby.
            server.close()
