"""The image of the mirror: its base made by the machine's own apt, built by buildah, run by podman.

Building needs the package registries, so it happens outside the namespace; what is built runs inside. Where they are,
and by which certificates they are trusted, the machine says when the tests run: its sources of Debian packages, its
pip.conf and PIP_* variables, its certificate authorities. All of it goes into the base, which goes with the tests.
"""

from __future__ import annotations

import configparser
import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.namespace import PROJECT, CommandFailed, Namespace
from tests.clients.podman import CONTAINERS, STORAGE
from tests.clients.processes import Process

BASE, IMAGE = "localhost/base:1", "localhost/mirror:1"
AUTHORITIES = "/machine/ca.pem"
NOT_IN_SLIM = ("man", "locale", "doc", "info")
"""What Debian's slim images leave out, below /usr/share."""


class Engine:
    """Images and containers of its own; in memory where there is some, as that saves half the time."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        memory = Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
        self.directory = d = Path(tempfile.mkdtemp(prefix="mirror-image-", dir=memory if roomy else None))
        (d / "tmp").mkdir()
        (d / "storage.conf").write_text(STORAGE.format(d=d))
        (d / "containers.conf").write_text(CONTAINERS.format(d=d))
        (d / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._env = {
            "CONTAINERS_STORAGE_CONF": str(d / "storage.conf"),
            "CONTAINERS_CONF": str(d / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            "TMPDIR": str(d / "tmp"),
            "HOME": str(d),
        }

    # ---- building -------------------------------------------------------------------------------------

    def make_base(self) -> None:
        """Make what debian:12-slim is: Debian without Python, documents and certificate authorities."""
        tar, files = self.directory / "base.tar", self.directory / "machine"
        files.mkdir()
        (files / "pip.conf").write_text(pip_settings())
        (files / "ca.pem").write_bytes(Path(authorities()).read_bytes())
        (files / "sources.list").write_text(sources())
        self._outside(
            *("mmdebstrap", "--quiet", "--variant=apt", '--aptopt=Acquire::Languages "none"'),
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in NOT_IN_SLIM),
            f'--customize-hook=mkdir -p "$1{os.path.dirname(AUTHORITIES)}"',
            f"--customize-hook=upload {files / 'ca.pem'} {AUTHORITIES}",
            f"--customize-hook=upload {files / 'pip.conf'} /etc/pip.conf",
            *(platform.freedesktop_os_release()["VERSION_CODENAME"], str(tar), str(files / "sources.list")),
        )
        self._outside("podman", "import", "--quiet", str(tar), BASE)
        tar.unlink()

    def build(self, *options: str) -> str:
        """Build the Dockerfile on the base; what buildah says."""
        policy = ("--signature-policy", str(self.directory / "policy.json"))
        given = ("--format", "docker", "--network", "host", "--build-arg", f"BASE={BASE}", *options)
        return self._outside("buildah", "build", *policy, *given, "--tag", IMAGE, str(PROJECT))

    def _outside(self, *command: str) -> str:
        """Run a command outside the namespace, with mounts of its own, so that none can stay behind."""
        # buildah gives proxies of the environment to what it runs; apt and pip know them, too
        done = subprocess.run(
            ("unshare", "--mount", "--propagation", "private", *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._env},
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(command, done.returncode, done.stdout.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    # ---- running --------------------------------------------------------------------------------------

    def podman(self, *arguments: str) -> str:
        """``podman`` inside; its standard output."""
        return self._namespace.run("podman", *arguments, env=self._env, both=False)

    def python(self, program: str) -> str:
        """What a program of Python's prints in the image."""
        return self.podman("run", "--rm", "--network", "none", "--entrypoint", "python3", IMAGE, "-c", program)

    def start(self, name: str, *options: str) -> Process:
        """Run a container in the foreground: SIGTERM goes on to it. Its network is the namespace's own by default."""
        network = () if "--network" in options else ("--network", "host")
        arguments = ("run", "--name", name, *network, *options, IMAGE)
        return self._namespace.start(name, "podman", *arguments, env=self._env, log=self.directory / f"{name}.log")

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.podman("inspect", "--type", kind, name))
        return found[0]

    def close(self) -> None:
        try:
            self.podman("rm", "--all", "--force", "--time", "0", "--volumes")
        finally:
            shutil.rmtree(self.directory)


# ---- what the machine says ------------------------------------------------------------------------------


def sources() -> str:
    """Return the machine's sources of Debian's own packages, one a line, as in sources.list."""
    command = ("apt-get", "indextargets", "--format", "deb $(SITE) $(RELEASE) $(COMPONENT)")
    only = ("Identifier: Packages", "Origin: Debian")
    found = subprocess.run((*command, *only), capture_output=True, text=True, check=True, timeout=60).stdout
    assert found, "apt knows no source of Debian's packages; apt-get update makes it know them"
    return found


def pip_settings() -> str:
    """Return a pip.conf that says what the machine's says, and its PIP_* variables, and which certificates to trust."""
    settings = configparser.RawConfigParser()
    config = os.environ.get("PIP_CONFIG_FILE", "")
    settings.read([Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf", config])
    if not settings.has_section("global"):
        settings.add_section("global")
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name not in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_CACHE_DIR"):
            settings.set("global", name.removeprefix("PIP_").lower().replace("_", "-"), value)
    settings.set("global", "cert", AUTHORITIES)
    lines = [f"{key} = {value.replace(chr(10), chr(10) + '  ')}" for key, value in settings.items("global")]
    return "\n".join(("[global]", *lines, ""))


def authorities() -> str:
    """Return the file of certificate authorities that pip trusts on this machine."""
    named = (os.environ.get(name, "") for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"))
    places = [*named, "/etc/ssl/certs/ca-certificates.crt"]
    return next(place for place in places if place and Path(place).is_file())
