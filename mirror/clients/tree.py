"""Files put below a folder that stands for a node's root: nothing of others is lost, and all of it is done or nothing.

What begins with our mark is ours and is written anew. JSON is merged into what is there. Anything else is refused,
unless forced, and then kept beside. Each file appears whole, by one rename.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mirror.clients.plan import MARK, File
from mirror.config.plain import read_plain

_NEW, _FOLDER_NEW = 0o644, 0o755
_LONGEST = 4 * 1024**2
"""Bytes of a file that is there: a configuration has less, and all of it is read."""


class TreeError(Exception):
    """The folder cannot be written to. The message says which file, and why."""


class Refusal(Exception):
    """Files that are not ours to write; nor was any other touched. reasons: for each, why, and what to do."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(reasons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of a file. kept: where what was there before is now, None when nothing had to be kept."""

    path: Path
    state: Literal["written", "unchanged", "merged", "replaced"]
    text: str
    kept: Path | None = None


def write_tree(root: Path, files: Sequence[File], *, force: bool = False) -> list[Written]:
    """Put the files below a folder, which is made when it is not there.

    force: replace what is not ours as well. Raises: Refusal, TreeError.
    """
    planned, refused = [], []
    for file in files:
        try:
            planned.append(_planned(root, file, force=force))
        except _NotOurs as error:
            refused.append(str(error))
    if refused:
        raise Refusal(refused)
    done: list[Written] = []
    for one in planned:
        try:
            done.append(_put(one))
        except OSError as error:
            said = f"; {', '.join(str(other.path) for other in done)} written before it" if done else ""
            raise TreeError(f"{one.path} cannot be written: {error.strerror}{said}") from error
    return done


class _NotOurs(Exception):
    """A file that we would spoil. The message says why, and what to do."""


def _planned(root: Path, file: File, *, force: bool) -> Written:
    path = root / file.path.lstrip("/")
    try:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(root)):
            raise _NotOurs(f"{path}: a link leads out of {root}, to {real}; take it away, or write where it leads")
        before = read_plain(real, _LONGEST).decode()
    except FileNotFoundError:
        # a link to what is not there yet stays one
        return Written(path=real if path.is_symlink() else path, state="written", text=file.text)
    except UnicodeDecodeError:
        before = None
    except OSError as error:
        raise TreeError(f"{path} cannot be read: {error.strerror}") from error
    if before == file.text:
        return Written(path=real, state="unchanged", text=before)
    if file.form == "json":
        merged = _merged(path, before, file.text)
        return Written(path=real, state="unchanged" if merged == before else "merged", text=merged)
    if before is not None and before.startswith(MARK):
        return Written(path=real, state="written", text=file.text)
    if not force:
        raise _NotOurs(
            f"{path} was written by somebody else: put the lines into it yourself (without --write they are printed), "
            "or replace it by --force, which keeps it beside"
        )
    return Written(path=real, state="replaced", text=file.text)


def _merged(path: Path, before: str | None, ours: str) -> str:
    """Return a JSON document with our keys in it; the text itself when they are there already."""
    if before is not None and not before.strip():
        return ours
    try:
        there = json.loads(before if before is not None else "", object_pairs_hook=_once)
        json.dumps(there, ensure_ascii=False, allow_nan=False).encode()  # not all that is read can be written
    except RecursionError as error:
        raise _NotOurs(f"{path} is not JSON that can be added to (nested too deep); repair it first") from error
    except ValueError as error:
        raise _NotOurs(f"{path} is not JSON that can be added to ({error}); repair it first") from error
    if not isinstance(there, dict):
        raise _NotOurs(f"{path} is JSON, but no object; repair it first")
    merged = dict(there)
    for key, wanted in json.loads(ours).items():
        listed = there.get(key, [])
        if not isinstance(listed, list):
            raise _NotOurs(f"{path}: {key} is no list; repair it first")
        if not all(one in listed for one in wanted):
            merged[key] = [*wanted, *(one for one in listed if one not in wanted)]
    assert before is not None
    return before if merged == there else json.dumps(merged, indent=_indent(before), ensure_ascii=False) + "\n"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _indent(text: str) -> int | str:
    """Return how a JSON document is indented, two where that cannot be seen."""
    second = next((line for line in text.splitlines()[1:] if line.strip()), "")
    return second[: len(second) - len(second.lstrip())] or 2


def _put(one: Written) -> Written:
    if one.state == "unchanged":
        return one
    _make_folder(one.path.parent)
    kept = _kept_beside(one.path) if one.state in ("merged", "replaced") else None
    fd, name = tempfile.mkstemp(prefix=f".{one.path.name}.", dir=one.path.parent)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            try:
                status = one.path.stat()
                os.fchmod(fd, status.st_mode & 0o7777)
                with suppress(PermissionError):
                    os.fchown(fd, status.st_uid, status.st_gid)
            except FileNotFoundError:
                os.fchmod(fd, _NEW)
            file.write(one.text)
            file.flush()
            os.fsync(fd)
        os.replace(name, one.path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return Written(path=one.path, state=one.state, text=one.text, kept=kept)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; others than the owner never write there, whatever the umask is."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True, mode=_FOLDER_NEW)


def _kept_beside(path: Path) -> Path:
    """Give a file another name beside it, one that is free. It stays under its own until that is replaced."""
    for number in range(1000):
        kept = path.with_name(f"{path.name}.bak{number or ''}")
        try:
            os.link(path, kept)
        except FileExistsError:
            continue
        return kept
    raise OSError(0, "there are a thousand .bak files beside it")
