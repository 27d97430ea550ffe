"""The built package: one top-level name, every module, and a suite that passes far from the sources."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.api.tree import PROJECT, modules

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PROJECT / "setup.cfg").is_file(), reason="only a checkout can be built"),
]

SOURCES = [
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "persistcoll",
    "serializers",
]
# Quick tests that cover much: every law, the formats, the names and the import rule.
SMOKE = ["conformance/test_pair_store_laws.py", "serializers", "api/test_public_names.py"]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without anything of this checkout; a failure shows its output."""
    unknown = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"}
    environment = {name: value for name, value in os.environ.items() if name not in unknown}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    """Call the build backend's own hook: no isolated environment, so no network."""
    into.mkdir(exist_ok=True)
    hook = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    run(sys.executable, "-W", "error::UserWarning", "-c", hook, into, cwd=source)
    (built,) = into.iterdir()
    return built


def names_in(wheel: Path) -> set[str]:
    """List the files of a wheel without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Copy what is built, so that build/ and egg-info do not appear in the checkout."""
    copy: Path = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        origin = PROJECT / name
        if origin.is_dir():
            shutil.copytree(origin, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("built") / "wheel")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("built") / "sdist")


def modules_of(source: Path) -> set[str]:
    """Return every Python file of the tree, by the name under which it is imported."""
    own = {path.relative_to(source).as_posix() for path in (source / "persistcoll").rglob("*.py")}
    linked = {
        f"persistcoll/{path.relative_to(source).as_posix()}"
        for path in (source / "serializers").rglob("*.py")
    }
    return own | linked


def test_the_wheel_holds_persistcoll_and_nothing_else(wheel, source):
    names = names_in(wheel)
    assert {name.split("/")[0] for name in names} == {"persistcoll"}
    assert names == modules_of(source) | {"persistcoll/py.typed"}


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    head, _, body = text.partition("\n\n")
    assert "\nRequires-Python: >=3.10" in head
    assert "\nLicense" in head
    assert not [
        line for line in head.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert body.strip()


def test_the_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(tmp_path, filter="data")
        else:
            archive.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    again = build("wheel", unpacked, tmp_path / "again")
    assert names_in(again) == names_in(wheel)


def test_the_checkout_links_to_the_serializers():
    link = PROJECT / "persistcoll" / "serializers"
    assert link.is_symlink()
    assert os.readlink(link) == "../serializers"


def test_every_extra_has_a_lower_bound_and_all_has_every_extra_of_users():
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg", "utf-8")
    extras = {name: value.split() for name, value in config["options.extras_require"].items()}
    bare = [
        need for needs in extras.values() for need in needs if ">=" not in need and "persistcoll[" not in need
    ]
    assert bare == []
    (everything,) = extras["all"]
    named = set(everything.removeprefix("persistcoll[").removesuffix("]").split(","))
    assert named == set(extras) - {"all", "test", "lint", "docs"}


def test_an_extra_installs_what_the_code_asks_for():
    """The code refuses a version older than its minimum, so the extra must not install one."""
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg", "utf-8")
    asked = {
        (keywords["extra"], node.args[0].value.partition(".")[0], keywords["minimum"])
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "import_optional"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and (keywords := {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords})
    }
    assert asked
    for extra, project, minimum in asked:
        bound = f"{project}>={'.'.join(map(str, minimum)).removesuffix('.0')}"
        assert config["options.extras_require"][extra].split() in ([bound], [bound + ".0"])


@pytest.mark.long
def test_the_installed_wheel_passes_from_another_directory(wheel, tmp_path):
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", home, cwd=tmp_path)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    # The test tools of the running environment, after the wheel: a path file adds its paths last.
    tools = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "tools.pth").write_text("\n".join(sorted(tools)), "utf-8")

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(PROJECT / "tests", elsewhere / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", elsewhere)
    found = run(python, "-c", "import persistcoll; print(persistcoll.__file__)", cwd=elsewhere).strip()
    assert Path(found).is_relative_to(site)
    run(python, "-m", "persistcoll", "--help", cwd=elsewhere)
    run(python.with_name("persistcoll"), "--help", cwd=elsewhere)
    smoke = [f"tests/{name}" for name in SMOKE]
    output = run(
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not root",
        *smoke,
        cwd=elsewhere,
    )
    assert " passed" in output
