"""Every client pushes to the registry and pulls back: without logins, with logins for all, with anonymous pulls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import PATH, Registries, refuse
from tests.clients.images import ARCHITECTURE, HELLO, Images, hello
from tests.clients.namespace import Namespace
from tests.clients.pushers import PUSHERS, Pushers, PushingDocker, use_login
from tests.clients.registry_process import ACCESSES, AUTHOR, WRONG, Access, refused


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("client", PUSHERS)
def test_push_and_pull_back(
    client: str, access: Access, registries: Registries, namespace: Namespace, images: Images
) -> None:
    registry, kind = registries(access), PUSHERS[client]
    image = images.multi if kind.exact else images.several
    repository = f"local/{client}/{access}"
    reference = f"{registry.host}/{repository}:1"
    with registry.explained(), Pushers(namespace, registry.url) as pushers:
        author = pushers.new(kind)
        if access != "open":
            refused(lambda: author.push(image, reference))
            for login in WRONG:
                refused(lambda login=login: use_login(author, login, image, reference))  # type: ignore[misc]
            assert not registry.tags(repository)
            author.login(AUTHOR)
        author.push(image, reference)
        assert registry.tags(repository) == ["1"]
        if kind.exact:
            registry.assert_holds(image, repository, "1")
            digest = image.digest
        else:
            digest = registry.assert_holds_contents(image, repository, "1")

        reader = pushers.new(kind)
        if access == "basic":
            refused(lambda: reader.pull_back(image, reference, digest))
            reader.login(AUTHOR)
        reader.pull_back(image, reference, digest)


@pytest.mark.parametrize("access", ACCESSES)
def test_a_build_by_buildkit_is_pushed(access: Access, registries: Registries, namespace: Namespace) -> None:
    program = next(builders(), None)
    if program is None:
        refuse("no docker program on PATH can build by BuildKit: it needs its buildx, or to be older than 23")
    registry, repository = registries(access), f"local/built/{access}"
    name = f"{registry.host}/{repository}:1"
    with registry.explained(), Pushers(namespace, registry.url) as pushers:
        author = pushers.new(PushingDocker)
        output = author.build_with_buildkit(scratch_context(pushers.folder()), name, str(program))
        assert "[2/2]" in output  # nobody else numbers the steps so
        assert HELLO in output
        if access != "open":
            author.login(AUTHOR)
        author.push_loaded(name)
        built = author.inspect(name)
        digest, manifest = registry.manifest(repository, "1")
        assert manifest["config"]["digest"] == built["Id"]
        assert built["RepoDigests"] == [f"{registry.host}/{repository}@{digest}"]

        reader = pushers.new(PushingDocker)
        if access == "basic":
            reader.login(AUTHOR)
        assert reader.pull(name)["Id"] == built["Id"]
        assert HELLO in reader.run(name)


def builders() -> Iterator[Path]:
    """The docker programs that hand a build to BuildKit: with buildx, or of a version that did it by itself."""
    for folder in PATH.split(os.pathsep):
        if found := shutil.which("docker", path=folder or None):
            version = re.search(r"version (\d+)", _output(found, "--version"))
            if _output(found, "buildx", "version") or (version and int(version[1]) < 23):
                yield Path(found)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode else done.stdout


def scratch_context(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "hello").write_bytes(hello(ARCHITECTURE))
    (folder / "hello").chmod(0o755)
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\nENTRYPOINT ["/hello"]\n')
    return folder
