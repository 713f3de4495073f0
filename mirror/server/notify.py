"""What a service manager is told: the protocol of sd_notify, a datagram to the socket named by ``NOTIFY_SOCKET``.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

_PATIENCE = 1.0  # seconds a full queue is waited for


class Manager:
    """The service manager we were started by, if any. Telling it never fails and costs nothing where there is none.

    interval: seconds within which it wants to hear that we are alive, half of what it waits; None when it does not.
    """

    def __init__(self, address: str = "", *, interval: float | None = None) -> None:
        self._address = address
        self.interval = interval
        self._status = ""
        self._due = 0.0

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Manager:
        """Find it, and take what names it out of the environment: programs that workers start are not the service."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        whose = environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        watched = microseconds.isdecimal() and int(microseconds) > 0 and whose in ("", str(os.getpid()))
        return cls(address, interval=int(microseconds) / 2e6 if watched else None)

    def ready(self, status: str) -> None:
        """Say that everything listens, also after ``reloading``. status: a line for people."""
        self._status = status
        self._send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is read again: until ``ready``."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self, status: str) -> None:
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say how things are, if that is new."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def alive(self) -> None:
        """Say that we are alive, when it is time to."""
        if self.interval is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self.interval
            self._send("WATCHDOG=1")

    def due(self) -> float:
        """Return when ``alive`` has something to say, as ``time.monotonic`` tells it."""
        return float("inf") if self.interval is None else self._due

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        message = "\n".join(one.replace("\n", " ") for one in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(_PATIENCE)
                sending.sendto(message.encode(), address)
        except OSError:
            pass  # it has gone away, which is no reason to stop serving
