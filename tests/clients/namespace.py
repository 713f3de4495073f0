"""A network namespace without any way out, in which well-known registry names are ours.

Commands run inside with their own mounts: /etc/hosts and /etc/resolv.conf (unknown names fail at once),
the caches of podman and skopeo, the certificates that docker and podman have for single registries (``certs``), and
one trusted CA. ``ip netns exec`` would remount /sys and so hide the
cgroups that runc, dockerd and podman need; nsenter for the network and unshare for the mounts do not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.clients.processes import Process, kill_all, wait_for

T = TypeVar("T")

HUB, AUTH, GHCR, CDN, CONTROL = (f"127.1.0.{n}" for n in (1, 2, 3, 4, 9))
OUTSIDE = "10.1.0.2"
"""An address that is no loopback one: who is asked there is asked from there."""
CDN_NAME = "production.cloudflare.docker.com"
HOSTS = f"""\
127.0.0.1 localhost mirror.test
{HUB} docker.io registry-1.docker.io index.docker.io
{AUTH} auth.docker.io
{GHCR} ghcr.io
{CDN} {CDN_NAME}
{OUTSIDE} registry.test
"""
PROJECT = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000
MOUNTS = """\
set -e
mount --bind "$0/hosts" /etc/hosts
mount --bind "$0/resolv.conf" /etc/resolv.conf
mount --bind "$0/containers" /var/lib/containers
mount --bind "$0/certs.d" /etc/docker/certs.d
mount --bind "$0/certs.d" /etc/containers/certs.d
exec "$@"
"""


class CommandFailed(AssertionError):
    """A command ended with another status than 0, or not in time."""

    def __init__(self, command: Sequence[str], status: int | None, output: str) -> None:
        ended = "did not end in time" if status is None else f"ended with status {status}"
        super().__init__(f"{' '.join(command)}\n  {ended}:\n{output[-4000:]}")
        self.command, self.status, self.output = command, status, output


class Namespace:
    """One namespace, named after this process so that two runs do not meet. ``close`` ends all inside."""

    def __init__(self, directory: Path) -> None:
        self.name = f"mirror-clients-{os.getpid()}"
        self.directory = directory
        (directory / "containers").mkdir(parents=True)
        (directory / "tmp").mkdir()
        self.certs = directory / "certs.d"
        self.certs.mkdir()
        for place in ("/var/lib/containers", "/etc/docker/certs.d", "/etc/containers/certs.d"):
            Path(place).mkdir(parents=True, exist_ok=True)  # to mount on
        (directory / "hosts").write_text(HOSTS)
        (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.ca_file = directory / "ca.pem"
        _call("ip", "netns", "add", self.name)
        try:
            _call("ip", "-n", self.name, "link", "set", "lo", "up")
            _call("ip", "-n", self.name, "address", "add", f"{OUTSIDE}/32", "dev", "lo")
        except BaseException:
            self.close()
            raise

    def add_address(self, address: str) -> None:
        """Have a further address inside, one that is not on loopback's network."""
        _call("ip", "-n", self.name, "address", "replace", f"{address}/32", "dev", "lo")

    # ---- commands -------------------------------------------------------------------------------------

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, seconds: float = 120.0, both: bool = True
    ) -> str:
        """Run a command inside to its end; its output (``both``: stderr too), or CommandFailed."""
        __tracebackhide__ = True
        with subprocess.Popen(
            self._wrap(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if both else subprocess.PIPE,
            env=self._environment(env),
            cwd="/",
            start_new_session=True,
        ) as popen:
            try:
                out, err = popen.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                popen.kill()
                out, err = popen.communicate()
                raise CommandFailed(command, None, (out + (err or b"")).decode(errors="replace")) from None
        if popen.returncode:
            text = (out + (err or b"")).decode(errors="replace")
            raise CommandFailed(command, popen.returncode, text)
        return out.decode(errors="replace")

    def start(self, name: str, *command: str, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a command inside; it is killed when this process dies. Call from the main thread only."""
        ends_with_us = ("setpriv", "--pdeathsig", "KILL")
        wrapped = self._wrap((*ends_with_us, *command))
        return Process(name, wrapped, log=log, env=self._environment(env), cwd=PROJECT)

    def _wrap(self, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--mount", "--propagation", "private"]
        return [*enter, "sh", "-c", MOUNTS, str(self.directory), *command]

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        trusted = str(self.ca_file)
        return {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory / "tmp"),
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": trusted,
            "SSL_CERT_DIR": "/nonexistent",
            **(more or {}),
        }

    # ---- threads --------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Move the calling thread inside: sockets it makes from now on belong there. There is no way back."""
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns failed")
        finally:
            os.close(fd)

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in a thread of its own that lives inside."""
        with self.threads(1) as pool:
            return pool.submit(function).result()

    def threads(self, count: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(count, initializer=self.enter)

    # ---- the end --------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Every process inside; shims that left their parent's tree included."""
        return [int(pid) for pid in _call("ip", "netns", "pids", self.name).split()]

    def close(self) -> None:
        """Kill what is inside, delete the namespace and its folder. Its mounts end with its processes."""
        assert threading.current_thread() is threading.main_thread()
        kill_all(self.pids())
        wait_for("namespace is empty", lambda: not self.pids(), seconds=10)
        _call("ip", "netns", "delete", self.name)
        shutil.rmtree(self.directory, ignore_errors=True)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
    return done.stdout
