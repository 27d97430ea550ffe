"""Fixtures for every test: the seed, what a test needs, what it must not leave behind.

The invariant: after a test the process has the threads, descriptors, children and handlers of signals that it
had before.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import Phase

from tests import leaks
from tests.crash.accounts import memory_directory
from tests.needs import missing

TESTS = Path(__file__).parent
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# Without --stress a test tries one of so many places of an operation.
PLACES = 23

MEASURED = "measured"
"""The property of a test that the end of the run shows: what it has measured and does not check."""

# Of the cases of each test in these directories one in so many runs, unless the test is marked otherwise.
SAMPLED = {
    "catalog": 3,
    "clusters": 10,
    "concurrency": 3,
    "conformance": 13,
    "crash": 5,
    "logs": 3,
    "permissions": 4,
    "servers": 20,
    "sql_queues": 4,
}

_SEED = pytest.StashKey[int]()
_LEFT_OUT = pytest.StashKey[set[str]]()  # names of tests
_FAILED = pytest.StashKey[bool]()

# No deadline, because the duration of a sync depends on the device. The blob repeats a failure without
# hypothesis's database. No explanation, because before Python 3.12 it traces every line of each further run.
_FOUND_BY = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target)
hypothesis.settings.register_profile(
    "default", deadline=None, print_blob=True, phases=(*_FOUND_BY, Phase.shrink)
)
hypothesis.settings.register_profile(
    "ci",
    parent=hypothesis.settings.get_profile("default"),
    # Hypothesis fixes its choices where it sees CI. Another seed for each change finds more. It is printed.
    derandomize=False,
    database=None,
    # A state machine is shrunk for up to five minutes, then the test's time is over, which hides the failure.
    # The seed repeats it where there is time.
    phases=_FOUND_BY,
)
hypothesis.settings.register_profile(
    "stress", parent=hypothesis.settings.get_profile("default"), max_examples=2000
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("persistcoll")
    group.addoption(
        "--all", action="store_true", help="run the longest tests, too, and all of them on the disk"
    )
    group.addoption(
        "--rest", action="store_true", help="run what a run with this --seed and without --all leaves out"
    )
    group.addoption("--stress", action="store_true", help="run the long forms: 2,000 examples, stress tests")
    group.addoption("--seed", type=int, default=None, help="repeat the random choices of an earlier run")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    seed = config.getoption("--seed")
    if worker is not None:
        seed = worker["persistcoll_seed"]
    if seed is None:
        seed = secrets.randbelow(2**32)
    config.stash[_SEED] = seed
    config.stash[_LEFT_OUT] = set()
    _choose_directory(config)
    # Before hypothesis reads it (tryfirst), so that one number repeats everything.
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(seed)
    if config.getoption("--hypothesis-profile", None) is None:
        profile = "stress" if config.getoption("--stress") else "ci" if IN_CI else "default"
        hypothesis.settings.load_profile(profile)


def _choose_directory(config: pytest.Config) -> None:
    """Let the tests write to memory, unless the user, ``--all`` or ``--rest`` has said otherwise.

    On a disk half of the suite's time is syncs (tests/sql_queues: 105 seconds, 49 in memory).
    """
    directory = memory_directory()
    on_disk = any(config.getoption(name) for name in ("--all", "--rest", "--stress"))
    if directory is not None and not on_disk:
        os.environ.setdefault("TMPDIR", directory)
        tempfile.tempdir = None  # so that tempfile reads the variable again


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Give a worker of pytest-xdist the seed of the run."""
    node.workerinput["persistcoll_seed"] = node.config.stash[_SEED]


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.stash[_SEED]
    return f"persistcoll: --seed={seed} repeats this run's random choices; what a test needs and lacks " + (
        "fails it (CI)" if IN_CI else "skips it"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the number of this run, from which others are derived."""
    return request.config.stash[_SEED]


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """Return a random generator for this test alone, the same in any order of tests."""
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Give a directory in which a sync costs nothing, for tests that do not depend on the device."""
    with tempfile.TemporaryDirectory(prefix="test_", dir=memory_directory()) as directory:
        yield Path(directory)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the collector off, so that it runs only when the test says."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def steps(request: pytest.FixtureRequest, rng: random.Random) -> dict[str, int]:
    """Return the places of an operation that a test tries, others in each run.

    A round of all places takes an hour, so only ``--stress`` tries them all.
    """
    if request.config.getoption("--stress"):
        return {"first": 1, "step": 1}
    return {"first": rng.randint(1, PLACES), "step": PLACES}


# --- what a test needs


def pytest_itemcollected(item: pytest.Item) -> None:
    # This runs before pytest reads -m, so that `-m "not root"` sees the markers.
    if any("root" in mark.args for mark in item.iter_markers("needs")):
        item.add_marker("root")
    share = SAMPLED.get(item.path.relative_to(TESTS).parts[0])
    if share is not None and item.get_closest_marker("sampled") is None:
        item.add_marker(pytest.mark.sampled(share))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--stress"):
        return
    left_out = {item for item in items if item.get_closest_marker("stress")}
    if not config.getoption("--all"):
        longest = {item for item in items if item.get_closest_marker("long")}
        cases = _left_out(items, "sampled", config.stash[_SEED]) - longest
        undrawn = _left_out(items, "drawn", config.stash[_SEED])
        if config.getoption("--rest"):
            left_out |= {*items} - longest - cases | undrawn
        else:
            left_out |= longest | cases | undrawn
            config.stash[_LEFT_OUT].update(map(_name, longest))
            if cases:
                config.stash[_LEFT_OUT].add(
                    f"{len(cases | undrawn)} cases of tests that have many, other ones in each run"
                )
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _left_out(items: list[pytest.Item], mark_name: str, seed: int) -> set[pytest.Item]:
    """Return the cases of tests marked so that this run leaves out: the same in each worker of a run."""
    cases: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker(mark_name)
        if mark is not None:
            cases.setdefault((_name(item), *mark.args), []).append(item)
    left_out: set[pytest.Item] = set()
    for (name, share), each in cases.items():
        first = random.Random(f"{seed} {mark_name} {name}").randrange(min(share, len(each)))
        left_out.update(each)
        left_out.difference_update(each[first::share])
    return left_out


def _name(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        left_out = session.config.stash[_LEFT_OUT]
        output["persistcoll_left_out"] = sorted(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Collect the names that a worker of pytest-xdist left out."""
    node.config.stash[_LEFT_OUT].update(getattr(node, "workeroutput", {}).get("persistcoll_left_out", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        terminalreporter.section("left out, because they take longest; --all runs them, too")
        for name in sorted(left_out):
            terminalreporter.line(name)
    measured = [
        (report.nodeid, value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == MEASURED
    ]
    if measured:
        terminalreporter.section("measured")
        for test, value in measured:
            terminalreporter.line(f"{test}: {value}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [what for mark in item.iter_markers("needs") for what in mark.args]
    lacking = missing(wanted)
    if lacking:
        pytest.skip("needs " + ", ".join(lacking))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_in_ci(report)
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_in_ci(report)
    return report


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for a missing need into a failure in CI, because CI exists to run the test."""
    if not (IN_CI and report.skipped and isinstance(report.longrepr, tuple)):
        return
    path, line, reason = report.longrepr
    reason = reason.removeprefix("Skipped: ")
    if reason.startswith(("needs ", "could not import ")):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: {reason}: a skip elsewhere, a failure where CI is set"


# --- what a test must not leave behind


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor, a child process or a handler of a signal."""
    before = leaks.Snapshot.now()
    yield
    left = before.settle()
    if not left:
        return
    description = str(left)
    for pid in left.children:
        leaks.kill(pid)
    before.restore_handlers()
    # A failed test's traceback keeps its objects alive, and one failure is enough.
    if not request.node.stash.get(_FAILED, False):
        pytest.fail(f"left behind: {description}", pytrace=False)
