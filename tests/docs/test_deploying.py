"""What the page about deployment gives to other programs is what these programs read.

The programs are not a part of the tests' environment: where one is missing, its test is skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.snippets import blocks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deploying.rst"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")


def texts(language: str) -> list[str]:
    """Return the blocks of the page in this language."""
    return [block.text for block in blocks(PAGE) if block.language == language]


def complaints(unit: str, directory: Path) -> str:
    """Return what systemd says about a unit."""
    path = directory / "shop-worker.service"
    path.write_text(unit.replace("/srv/shop/.venv/bin/python", sys.executable), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one(tmp_path):
    (unit,) = texts("ini")
    assert "shop-worker.service" not in complaints(unit, tmp_path)
    wrong = unit.replace("KillMode=mixed", "KillMode=most")
    assert "shop-worker.service" in complaints(wrong, tmp_path)


def test_the_yaml_is_yaml():
    yaml = pytest.importorskip("yaml")
    compose, pod = map(yaml.safe_load, texts("yaml"))
    assert compose["services"].keys() == {"web", "worker"}
    assert pod["kind"] == "StatefulSet"
    volumes = {claim["metadata"]["name"] for claim in pod["spec"]["volumeClaimTemplates"]}
    containers = pod["spec"]["template"]["spec"]["containers"]
    assert {mount["name"] for each in containers for mount in each["volumeMounts"]} == volumes
