"""How the house is built: who may import whom, and that the checks every test runs under do check."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from blockbuster import BlockingError

from mirror.store import files
from mirror.store.reading import read_now

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "mirror").rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a module as it is written. Every test here reads all of them."""
    return ast.parse(path.read_text())


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Return what a module imports: ``package.module`` and ``package.module.name``."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(*packages: str) -> list[Path]:
    return [path for path in SOURCES if module_of(path).split(".")[1:2] and module_of(path).split(".")[1] in packages]


BELOW_WIRING = ("api", "registry", "store", "metadata", "upstream", "worker", "logs", "metrics", "oci")


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter; not in this process, whose logging it would change."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_imports_point_downwards() -> None:
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_an_import_that_points_upwards_would_be_seen(tmp_path: Path) -> None:
    config = tmp_path / "upside-down.toml"
    config.write_text(
        '[tool.importlinter]\nroot_package = "mirror"\n[[tool.importlinter.contracts]]\nname = "upside down"\n'
        'type = "layers"\ncontainers = ["mirror"]\nlayers = ["oci", "api"]\n'
    )
    done = lint(config)
    assert done.returncode == 1
    assert "mirror.api.paths -> mirror.oci" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path))
    assert docstring, "its one idea, in a sentence"
    assert docstring.splitlines()[0].strip()


COMMANDS = "mirror.cli."
"""They import what is slow when they are run, as help and usage errors need not wait for it."""


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_stand_at_the_top(path: Path) -> None:
    """An import within a function hides a cycle, or does work on the way of a request."""
    tree = tree_of(path)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and not module_of(path).startswith(COMMANDS):
            inner = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inner, f"{function.name} imports in lines {inner}"


CONCRETE = (
    "mirror.metadata.sqlite",
    "mirror.store.disk",
    "mirror.store.lease",
    "mirror.store.residency",
    "mirror.store.root",
    "mirror.upstream.client",
    "mirror.registry.inflight.Inflight",
)
"""What only wiring may name, besides the package it is of."""


@pytest.mark.parametrize("path", below(*BELOW_WIRING), ids=module_of)
def test_only_wiring_names_concrete_classes(path: Path) -> None:
    package = ".".join(module_of(path).split(".")[:2])
    named = {name for name in imports_of(path) if name.startswith(CONCRETE) and not name.startswith(package + ".")}
    assert not named


def test_wiring_does_name_them() -> None:
    named = {name for path in below("wiring") for name in imports_of(path)}
    assert set(CONCRETE) <= named


@pytest.mark.parametrize("path", below(*BELOW_WIRING), ids=module_of)
def test_nobody_below_wiring_sees_the_whole_configuration(path: Path) -> None:
    seen = set(imports_of(path))
    assert not {"mirror.config.Config", "mirror.config.models.Config", "mirror.config.load"} & seen


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("aiohttp", {"api", "upstream", "server", "conformance", "prefetch", "wiring"}),
        ("sqlite3", {"metadata", "store"}),
        ("diskcache", {"store"}),
        ("prometheus_client", {"metrics"}),
        ("pydantic", {"config"}),
        ("yaml", {"config"}),
        ("click", {"cli"}),
        ("rich", {"cli"}),
        ("fcntl", {"store", "server"}),
    ],
)
def test_a_library_is_used_in_one_place(library: str, packages: set[str]) -> None:
    users = {
        module_of(path).split(".")[1]
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert users, "somewhere"
    assert users <= packages


@pytest.mark.parametrize("path", below("oci"), ids=module_of)
def test_the_specifications_words_need_the_standard_library_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(path)} - {"mirror", "__future__"}
    assert outside <= sys.stdlib_module_names


# ---- the checks of conftest.py check ----


async def test_a_blocking_call_on_the_loop_is_seen(tmp_path: Path, blocking_calls: list[str]) -> None:
    with pytest.raises(BlockingError):
        files.sync_folder(str(tmp_path))
    assert "os.fsync" in blocking_calls[0]
    with pytest.raises(BlockingError):
        files.write_all(-1, [b"x"], 0)
    with pytest.raises(BlockingError):
        files.unlink_quietly(str(tmp_path / "x"))
    assert [call.split()[0] for call in blocking_calls] == ["os.fsync", "os.pwritev", "os.unlink"]
    assert "mirror/store/files.py" in blocking_calls[0]
    blocking_calls.clear()


def test_off_the_loop_it_may_block(tmp_path: Path) -> None:
    files.sync_folder(str(tmp_path))


async def test_a_read_from_the_page_cache_may_be_on_the_loop(tmp_path: Path, blocking_calls: list[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    fd = os.open(path, os.O_RDONLY)
    try:
        buffer = memoryview(bytearray(3))
        assert read_now(fd, buffer, 0) in (3, -1)
    finally:
        os.close(fd)
    assert blocking_calls == []


LEAVERS = """
import asyncio, os, socket, threading

async def test_leaves_a_task():
    asyncio.get_running_loop().leak = asyncio.create_task(asyncio.sleep(60), name="left over")

def test_leaves_a_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

async def test_leaves_nothing():
    left, right = socket.socketpair()
    left.close(), right.close()
    await asyncio.gather(asyncio.sleep(0), asyncio.to_thread(int))
"""


def test_what_outlives_a_test_is_seen(tmp_path: Path) -> None:
    """Run four small tests under our conftest in a process of their own."""
    ours = (ROOT / "tests" / "conftest.py").read_text()
    hurried = ours.replace("THREADS_END = 20.0", "THREADS_END = 0.2")  # one of the four is never told to end
    assert hurried != ours
    (tmp_path / "conftest.py").write_text(hurried)
    (tmp_path / "test_leavers.py").write_text(LEAVERS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        timeout=60,
    )
    assert "4 passed, 3 errors" in done.stdout, done.stdout
    for name, what in (("task", "tasks left"), ("descriptor", "descriptors left"), ("thread", "threads left")):
        assert f"ERROR test_leavers.py::test_leaves_a_{name}" in done.stdout
        assert f"AssertionError: {what}: " in done.stdout
