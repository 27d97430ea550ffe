"""The rules for alerts name metrics that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from persistcoll.metrics import _METRICS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "monitoring.rst"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")


def test_the_metrics_of_the_page_are_there():
    named = set(re.findall(r"\bpersistcoll_(\w+)", PAGE.read_text("utf-8")))
    assert named <= set(_METRICS)
    assert {"oldest_age_seconds", "items", "gets_total", "events_total"} <= named
