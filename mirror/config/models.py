"""Every setting, once: its name, unit, default and description.

Below ``wiring`` no module sees the whole: each gets its own small section.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.functional_validators import AfterValidator
from pydantic_core import PydanticCustomError

from mirror.config import values
from mirror.config.problems import Path as SettingPath
from mirror.config.problems import did_you_mean
from mirror.config.values import ListenAddress

Text = Annotated[str, BeforeValidator(values.text)]
Switch = Annotated[bool, BeforeValidator(values.switch)]
Duration = Annotated[float, BeforeValidator(values.duration)]
SomeDuration = Annotated[float, BeforeValidator(values.some_duration)]
DurationOrUnlimited = Annotated[float | None, BeforeValidator(values.duration_or_unlimited)]
ByteCount = Annotated[int, BeforeValidator(values.byte_count)]
HostName = Annotated[str, BeforeValidator(values.host_name)]
Url = Annotated[str, BeforeValidator(values.url)]
Network = Annotated[values.Network, BeforeValidator(values.network)]
ClientNetwork = Annotated[values.Network, BeforeValidator(values.client_network)]
Glob = Annotated[str, BeforeValidator(values.local_glob)]
Listen = Annotated[ListenAddress, BeforeValidator(values.listen_address)]
FilePath = Annotated[Path, BeforeValidator(values.file_path)]
FolderPath = Annotated[Path, BeforeValidator(values.readable_folder)]
ReadableFile = Annotated[Path, BeforeValidator(values.readable_file)]
SecretFile = Annotated[Path, BeforeValidator(values.secret_file)]
UsersFile = Annotated[Path, BeforeValidator(values.users_file)]

_none_is_empty = BeforeValidator(lambda value: {} if value is None else value)
"""A section whose every line is commented out reads as null: it has its defaults."""


class Section(BaseModel):
    """A part of the configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Tls(Section):
    certificate: ReadableFile = Field(description="PEM file of the certificate and the chain after it.")
    key: ReadableFile = Field(description="PEM file of the certificate's private key.")


def default_root() -> Path:
    """Return the folder used when none is given: ``oci-mirror`` in the user's data home.

    Source: XDG Base Directory Specification; a relative ``XDG_DATA_HOME`` is ignored, as it says.
    Raises: RuntimeError when the user has no home folder.
    """
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data_home if data_home.is_absolute() else Path.home() / ".local" / "share") / "oci-mirror"


class Storage(Section):
    root: FilePath = Field(
        default_factory=default_root,
        description="Folder, on a local file system, that everything is kept in. "
        "Default: oci-mirror in $XDG_DATA_HOME, else in ~/.local/share.",
    )


class Credentials(Section):
    username: Text = Field(description="User name at the upstream.")
    password_file: SecretFile = Field(description="File that holds the password or token.")


class Tags(Section):
    fresh_for: Duration = Field(
        default=60.0, description="Duration: how long a tag is answered without asking the upstream again."
    )
    stale_for: DurationOrUnlimited = Field(
        default=None,
        description="Duration after fresh_for: how long a tag is still answered when the upstream cannot be asked; "
        "or unlimited.",
    )
    revalidate_wait: Duration = Field(
        default=1.0,
        description="Duration: how long a client waits for the upstream's word on a stale tag before it gets the "
        "kept answer.",
    )
    on_not_found: Literal["forget", "keep"] = Field(
        default="forget", description="What happens to a kept tag when the upstream says that it is gone."
    )


class Upstream(Section):
    url: Url = Field(description="Base URL of the registry, http or https, without /v2.")
    names: tuple[HostName, ...] = Field(
        default=(), description="Other names, host[:port], in ns or Host that mean this upstream."
    )
    ca_file: ReadableFile | None = Field(
        default=None, description="PEM file of certificate authorities to trust for this upstream besides the system's."
    )
    credentials: Credentials | None = Field(default=None, description="What to log in with; null is anonymous.")
    realms: tuple[HostName, ...] = Field(
        default=(),
        description="Further hosts, host[:port], that may be given the credentials, besides the registry's own "
        "host and https hosts of its domain.",
    )
    redirects_to: tuple[Network, ...] = Field(
        default=(), description="Private networks that redirects and token realms of this upstream may lead to."
    )
    unverified_ranges: Switch = Field(
        default=True,
        description="Whether ranges of a blob that is still arriving are sent before its digest can be checked.",
    )
    tags: Annotated[Tags, _none_is_empty] = Field(default_factory=Tags, description="How long tags are trusted.")


class Push(Section):
    missing_blobs: Literal["reject", "accept"] = Field(
        default="reject", description="What happens to a pushed manifest whose config or layers are not here."
    )
    session_expires: SomeDuration = Field(
        default=86400.0, description="Duration: how long an upload session nobody sends to is kept."
    )


class Access(Section):
    htpasswd_file: UsersFile | None = Field(
        default=None, description="File of users, a line each, bcrypt only (htpasswd -B); null is no users."
    )
    anonymous: Literal["pull", "none"] = Field(
        default="pull", description="What clients may do that do not log in: pull, or none (nothing)."
    )
    push: tuple[Text, ...] | None = Field(
        default=None, description="Users who may push, and delete what was pushed; null is every user."
    )
    admin: tuple[Text, ...] = Field(
        default=(), description="Users who may also delete what was pulled through; they may push too."
    )
    allow_from: tuple[ClientNetwork, ...] = Field(
        default=(), description="Networks whose clients may use the API; none given is all."
    )
    insecure_writes: Switch = Field(
        default=False,
        description="Whether, with no users, anybody may write through addresses that are not loopback.",
    )


class Limits(Section):
    manifest: ByteCount = Field(default=4 * 1024**2, description="Bytes: the largest manifest taken.")
    blob: ByteCount = Field(default=256 * 1024**3, description="Bytes: the largest blob taken.")
    send_timeout: SomeDuration = Field(
        default=60.0, description="Duration: how long a client may take none of the bytes sent to it."
    )


def builtin_upstreams() -> dict[str, Upstream]:
    """Return the well-known public registries, which are the upstreams when none are given."""
    return {
        "docker.io": Upstream(url="https://registry-1.docker.io", names=("index.docker.io", "registry-1.docker.io")),
        "ghcr.io": Upstream(url="https://ghcr.io"),
        "quay.io": Upstream(url="https://quay.io"),
        "gcr.io": Upstream(url="https://gcr.io"),
        "registry.k8s.io": Upstream(url="https://registry.k8s.io"),
        "mcr.microsoft.com": Upstream(url="https://mcr.microsoft.com"),
        "public.ecr.aws": Upstream(url="https://public.ecr.aws"),
        # it names its own host as realm at first, and this one once a token has expired
        "nvcr.io": Upstream(url="https://nvcr.io", realms=("authn.nvidia.com",)),
    }


DEFAULT_UPSTREAM = "docker.io"


class Config(Section):
    listen: Annotated[
        tuple[Listen, ...],
        BeforeValidator(values.listen_addresses),
        AfterValidator(values.distinct_addresses),
    ] = Field(
        default=(ListenAddress("127.0.0.1", 5000),),
        description="HOST:PORT, or a list of them; IPv6 in brackets and quotes; port 0 takes a free one.",
    )
    workers: Annotated[int | Literal["auto"], BeforeValidator(values.workers)] = Field(
        default="auto", description="Worker processes, 1 to 256; auto: one for each CPU this service may use."
    )
    tls: Tls | None = Field(default=None, description="What to serve HTTPS with; null is plain HTTP.")
    storage: Annotated[Storage, _none_is_empty] = Field(default_factory=Storage, description="Where things are kept.")
    upstreams: dict[HostName, Upstream] = Field(
        default_factory=builtin_upstreams,
        description="Registries to fetch from, by the name images have there, host[:port]. "
        "When given they replace the built-in ones; {} is none.",
    )
    default_upstream: Text | None = Field(
        default=DEFAULT_UPSTREAM,
        description="Upstream of requests that name none by ns, Host or path; null is none. "
        "Default: docker.io; null when upstreams are given without docker.io.",
    )
    local: tuple[Glob, ...] = Field(
        default=("local/**",),
        description="Patterns of repository names that never go upstream, in requests that name no upstream.",
    )
    names: tuple[HostName, ...] = Field(
        default=(), description="Hosts, host[:port], by which clients know this registry itself, in ns and Host."
    )
    packages: FolderPath | None = Field(
        default=None,
        description="Folder of OCI layouts and docker save archives, served as local/<path in the folder>.",
    )
    read_only: Switch = Field(default=False, description="Whether everything that writes is refused (405).")
    delete: Switch = Field(default=True, description="Whether tags, manifests and blobs can be deleted.")
    push: Annotated[Push, _none_is_empty] = Field(default_factory=Push, description="How pushes are taken.")
    access: Annotated[Access, _none_is_empty] = Field(default_factory=Access, description="Who may do what.")
    limits: Annotated[Limits, _none_is_empty] = Field(default_factory=Limits, description="Bounds of what is taken.")
    shutdown_delay: Duration = Field(
        default=5.0,
        description="Duration: how long requests are still accepted after SIGTERM, while /readyz already says 503.",
    )
    drain_timeout: Duration = Field(
        default=25.0, description="Duration after shutdown_delay: how long running transfers may take to finish."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_without_docker_io(cls, data: Any) -> Any:
        """Let a file of private upstreams load without saying that none of them is the default."""
        if not isinstance(data, dict) or "default_upstream" in data:
            return data
        given = data.get("upstreams")
        return data | {"default_upstream": None} if isinstance(given, dict) and DEFAULT_UPSTREAM not in given else data

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        names = {name: dict(enumerate(upstream.names)) for name, upstream in self.upstreams.items()}
        found = chain(
            disagreements(names, self.default_upstream, own=dict(enumerate(self.names))),
            access_disagreements(self.access.model_dump(exclude_unset=True)),
        )
        for path, message, suggestion in found:
            raise PydanticCustomError(
                DISAGREEMENT, "{message}", {"message": message, "suggestion": suggestion, "path": path}
            )
        return self


DISAGREEMENT = "disagreement"
"""Type of the error that settings which are each right do not go together."""


def disagreements(
    names: Mapping[str, Mapping[int, str]], default: str | None, *, own: Mapping[int, str]
) -> Iterator[tuple[SettingPath, str, str]]:
    """Find names that mean two registries, and a default that is none of them.

    names: upstream → its further names by their index. own: names of this registry itself by their index.
    Gives path, message and suggestion of each.
    """
    owners = {name: name for name in names}
    for upstream, others in names.items():
        for at, other in others.items():
            owner = owners.setdefault(other, upstream)
            if owner != upstream:
                yield ("upstreams", upstream, "names", at), f'"{other}" already means the upstream {owner}', ""
    for at, name in own.items():
        if name in owners:
            yield ("names", at), f'"{name}" already means the upstream {owners[name]}', "a name means one registry only"
    if default is not None and default not in names:
        known = ", ".join(names) or "there are none"
        hint = f'did you mean "{owners[default]}"?' if default in owners else did_you_mean(default, names, cutoff=0.75)
        yield ("default_upstream",), f"is not one of the upstreams ({known})", hint


def access_disagreements(access: Mapping[str, Any]) -> Iterator[tuple[SettingPath, str, str]]:
    """Find what only means something with users, and is given without their file.

    access: the section as given. Gives path, message and suggestion of each.
    """
    if access.get("htpasswd_file") is not None:
        return
    if access.get("anonymous") == "none":
        yield ("access", "anonymous"), "with no users, nobody could do anything", "give access.htpasswd_file, or pull"
    for setting in ("push", "admin"):
        given = access.get(setting)
        if isinstance(given, (list, tuple)) and (given or setting == "push"):
            yield ("access", setting), "lists users, but there are none", "give access.htpasswd_file"
