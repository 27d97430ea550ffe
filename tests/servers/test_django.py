"""Calls in the transactions of Django, in a program of its own: see :mod:`tests.servers.django_program`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.django_program import CHECKS

pytestmark = pytest.mark.needs("import:django")


def test_a_program_with_django_joins_its_transactions(place):
    ((host, port),) = place.address.hosts
    given = {
        "url": place.address.shown,
        "host": host,
        "port": port,
        "user": place.address.user,
        "password": place.address.password,
        "database": place.address.database,
        "schema": place.schema,
    }
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.servers.django_program", place.kind, *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert not result.stderr, result.stderr
    assert result.returncode == 0
    assert result.stdout.split() == [check.__name__ for check in CHECKS]
