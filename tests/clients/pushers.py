"""The clients as those who push: each loads an image, logs in, pushes, and pulls back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.clients.clients import Clients
from tests.clients.containerd import Containerd
from tests.clients.docker import Docker
from tests.clients.images import Image
from tests.clients.layout import write_archive, write_layout
from tests.clients.namespace import Namespace
from tests.clients.podman import Podman
from tests.clients.registry_process import Login


class Pusher(Protocol):
    """A fresh, empty client of one registry.

    exact: whether what it pushes is what it was given, byte for byte. logs_in: whether it has a login of its own, else
    a wrong one shows when it is used. Everything raises CommandFailed when the client fails.
    """

    exact: bool
    logs_in: bool

    def __init__(self, namespace: Namespace, directory: Path, registry: str) -> None: ...

    def login(self, login: Login) -> None:
        """Log in; or send the login along from now on."""

    def push(self, image: Image, reference: str) -> None:
        """Push it under that name."""

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        """Pull that name, which is to be this image, and to have that digest."""

    def close(self) -> None: ...


P = TypeVar("P", bound=Pusher)


class Pushers(Clients):
    """``with Pushers(namespace, url) as pushers``: fresh clients of that registry, gone after the block."""

    def new(self, kind: type[P]) -> P:
        directory = self.folder()
        client = kind(self._namespace, directory, self._mirror)
        assert isinstance(client, Containerd | Docker | Podman)
        self._open.append((client, directory))
        return client


class PushingDocker(Docker):
    exact, logs_in = False, True

    def forget(self, reference: str) -> None:
        """Have it no longer, so that it is pulled again: a second dockerd would take longer."""
        self._docker("image", "rm", "--force", self.inspect(reference)["Id"])

    def __init__(self, namespace: Namespace, directory: Path, registry: str) -> None:
        super().__init__(namespace, directory, registry)
        self.host = registry.partition("://")[2]

    def login(self, login: Login) -> None:
        self._docker("login", "--username", login.user, "--password", login.password, self.host.partition("/")[0])

    def push(self, image: Image, reference: str) -> None:
        self._docker("load", "--input", str(write_archive(image, self._directory / "image.tar", reference)))
        self.push_loaded(reference)

    def push_loaded(self, reference: str) -> None:
        self._docker("push", reference)

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        found = self.pull(reference)
        assert found["Id"] == image.config.digest
        assert found["RepoDigests"] == [f"{reference.rpartition(':')[0]}@{digest}"]
        assert tuple(found["RootFS"]["Layers"]) == image.diff_ids

    def build_with_buildkit(self, context: Path, name: str, program: str) -> str:
        """``docker build`` by BuildKit, with one of the docker programs there are; its output."""
        env = {"DOCKER_CONFIG": str(self._directory / "client"), "DOCKER_BUILDKIT": "1"}
        socket = f"unix://{self._socket}"
        build = ("build", "--progress", "plain", "--network", "none", "--tag", name, str(context))
        return self._namespace.run(program, "--host", socket, *build, env=env)


class PushingPodman(Podman):
    exact, logs_in = False, True
    certificates: tuple[str, ...] = ()
    """Options that name the folder of its certificates, where it looks into none by itself."""

    @property
    def _policy(self) -> tuple[str, str]:
        return "--signature-policy", str(self._directory / "policy.json")

    def login(self, login: Login) -> None:
        self._login("podman", login)

    def _login(self, program: str, login: Login) -> None:
        # buildah and skopeo do not look into registries.conf for that
        options = ("--tls-verify=false",) if self.insecure else self.certificates
        user = ("--username", login.user, "--password", login.password)
        self._run(program, "login", *options, *user, self.host.partition("/")[0])

    def load(self, image: Image) -> str:
        """Bring it into the storage; its id there."""
        archive = write_archive(image, self._directory / "image.tar", "localhost/loaded:1")
        return self._run("podman", "pull", "--quiet", *self._policy, f"oci-archive:{archive}").split()[-1]

    def push(self, image: Image, reference: str) -> None:
        self._run("podman", "push", "--quiet", *self._policy, self.load(image), f"docker://{reference}")

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        self._assert_is(self.pull(reference), image, reference, digest)

    def _assert_is(self, found: dict[str, Any], image: Image, reference: str, digest: str) -> None:
        assert f"sha256:{found['Id']}" == image.config.digest
        assert f"{reference.rpartition(':')[0]}@{digest}" in found["RepoDigests"]
        assert tuple(found["RootFS"]["Layers"]) == image.diff_ids


class Buildah(PushingPodman):
    def login(self, login: Login) -> None:
        self._login("buildah", login)

    def push(self, image: Image, reference: str) -> None:
        self._run("buildah", "push", "--quiet", *self._policy, self.load(image), f"docker://{reference}")

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        self._run("buildah", "pull", "--quiet", *self._policy, reference)
        self._assert_is(self.inspect(reference), image, reference, digest)


class Skopeo(PushingPodman):
    exact = True

    def login(self, login: Login) -> None:
        self._login("skopeo", login)

    def push(self, image: Image, reference: str) -> None:
        layout = write_layout(image, self._directory / "layout")
        self.copy(f"oci:{layout}:{image.tag}", f"docker://{reference}")

    def copy(self, source: str, target: str) -> None:
        self.skopeo("copy", "--quiet", "--all", "--preserve-digests", source, target)

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        folder = self._directory / "pulled"
        self.copy(f"docker://{reference}", f"dir:{folder}")
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found["manifest.json"] == image.top.data
        for one in image.blobs:
            assert found[one.digest.partition(":")[2]] == one.data
        for one in image.manifests[:-1]:
            assert found[f"{one.digest.partition(':')[2]}.manifest.json"] == one.data


class PushingContainerd(Containerd):
    exact, logs_in = True, False

    def __init__(self, namespace: Namespace, directory: Path, registry: str) -> None:
        super().__init__(namespace, directory, registry)
        self._user: tuple[str, ...] = ()
        self._transport: tuple[str, ...] = ("--plain-http",)

    def login(self, login: Login) -> None:
        self._user = ("--user", f"{login.user}:{login.password}")

    def push(self, image: Image, reference: str) -> None:
        archive = write_archive(image, self._directory / "image.tar", reference)
        self._ctr("images", "import", "--all-platforms", "--no-unpack", str(archive))
        self._ctr("images", "push", *self._transport, *self._user, reference)

    def pull_back(self, image: Image, reference: str, digest: str) -> None:
        self._ctr("images", "pull", *self._transport, "--all-platforms", *self._user, reference)
        assert self.digest(reference) == digest
        assert self.content() == {one.digest for one in (*image.manifests, *image.blobs)}


PUSHERS: dict[str, type[Pusher]] = {
    "docker": PushingDocker,
    "podman": PushingPodman,
    "buildah": Buildah,
    "skopeo": Skopeo,
    "ctr": PushingContainerd,
}


def use_login(client: Pusher, login: Login, image: Image, reference: str) -> None:
    """Log in; by pushing, where a login is not asked for by itself. Raises: CommandFailed when it is refused."""
    client.login(login)
    if not client.logs_in:
        client.push(image, reference)
