"""Who has a port: what /proc says about other processes, for error messages only. Every answer may be None."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"
_ANY = {"0.0.0.0", "::"}


def listener(host: str, port: int) -> str | None:
    """Say which process listens where this address would, as ``pid 123 (nginx)``; None when it cannot be seen.

    host: numeric. Of a parent with listening children (a pre-forking server), it is the parent.
    """
    wanted = {f"socket:[{inode}]" for inode in _inodes(host, port)}
    pid = _holder(wanted) if wanted else None
    return describe(_eldest(pid)) if pid is not None else None


def describe(pid: int) -> str:
    """Return ``pid 123 (command)``, without the options of the command: they may hold secrets."""
    words = _command(pid)
    shown = [os.path.basename(words[0])] if words else []
    for word in words[1:]:
        if word.startswith("-") and word != "-m":
            break
        shown.append(word)
    text = " ".join(shown)[:80]
    return f"pid {pid} ({text})" if text.isprintable() and text else f"pid {pid}"


def alive(pid: int) -> bool:
    """Say whether there is such a process, a zombie not counted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def overlap(one: str, other: str) -> bool:
    """Say whether two numeric addresses of one port are in each other's way."""
    return one == other or one in _ANY or other in _ANY


def _inodes(host: str, port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            if fields[3] == _LISTEN and int(hex_port, 16) == port and overlap(_address(address), host):
                yield fields[9]


def _address(text: str) -> str:
    """Read an address as /proc/net has it: words of 32 bits in the machine's own byte order."""
    packed = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _holder(sockets: set[str]) -> int | None:
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    if os.readlink(entry.path) in sockets:
                        return pid
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return None


def _eldest(pid: int) -> int:
    command = _command(pid)
    while command:
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
        if parent <= 0 or _command(parent) != command:
            break
        pid = parent
    return pid


def _command(pid: int) -> list[str]:
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return data.decode("utf-8", "replace").rstrip("\0").split("\0") if data else []
