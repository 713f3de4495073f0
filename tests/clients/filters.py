"""What config/mirror.service lets the service ask the kernel for, as a seccomp profile for container engines.

systemd turns a unit's settings into filters of system calls; so does this, for the settings that can be in the way of
a service in Python: SystemCallFilter, MemoryDenyWriteExecute, RestrictAddressFamilies and RestrictNamespaces. Which
calls a set such as @system-service has, systemd itself says.
"""

from __future__ import annotations

import errno
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Rule = dict[str, Any]
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_WRITE, _EXEC, _SHM_EXEC = 2, 4, 0o100000
_NEW_NAMESPACES = 0x7E020080


def profile(unit: Path) -> Rule:
    """Return the profile, as JSON has it."""
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        values.setdefault(name, []).append(value)
    allowed = _calls("@default")
    for line in values["SystemCallFilter"]:
        for word in line.removeprefix("~").split():
            calls = _calls(word)
            allowed = allowed - calls if line.startswith("~") else allowed | calls
    special = dict(_arguments(values))
    rules = [{"names": sorted(allowed - special.keys()), "action": "SCMP_ACT_ALLOW"}]
    rules += [
        {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}
        for name, conditions in special.items()
        if name in allowed
        for condition in conditions
    ]
    # glibc then takes clone, whose flags can be looked at
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": getattr(errno, values["SystemCallErrorNumber"][0]),
        "architectures": [_ARCHITECTURES[platform.machine()]],
        "syscalls": rules,
    }


def _calls(word: str) -> set[str]:
    """Return the system calls of a set, with those of the sets in it."""
    if not word.startswith("@"):
        return {word}
    found = subprocess.run(
        ("systemd-analyze", "--no-pager", "syscall-filter", word),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    words = [
        line.strip() for line in found.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")
    ]
    return set().union(*map(_calls, words))


def _arguments(values: dict[str, list[str]]) -> Iterator[tuple[str, Iterable[Rule]]]:
    """Give the calls that are allowed with some arguments only, and the conditions of which one must hold."""
    if values["MemoryDenyWriteExecute"] == ["yes"]:
        # neither both at once, nor what was written made executable
        yield "mmap", [_masked(2, _WRITE | _EXEC, value) for value in (0, _WRITE, _EXEC)]
        yield "mprotect", [_masked(2, _EXEC, 0)]
        yield "pkey_mprotect", [_masked(2, _EXEC, 0)]
        yield "shmat", [_masked(2, _SHM_EXEC, 0)]
    if "RestrictAddressFamilies" in values:
        families = [getattr(socket, name) for name in values["RestrictAddressFamilies"][0].split()]
        yield "socket", [{"index": 0, "value": int(family), "op": "SCMP_CMP_EQ"} for family in families]
    if values["RestrictNamespaces"] == ["yes"]:
        yield "clone", [_masked(0, _NEW_NAMESPACES, 0)]
        yield "clone3", []
        yield "unshare", []
        yield "setns", []


def _masked(index: int, mask: int, value: int) -> Rule:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
