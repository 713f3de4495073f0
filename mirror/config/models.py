"""Every setting, once: its name, unit, default and description.

Below ``wiring`` no module sees the whole: each gets its own small section.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import AfterValidator
from pydantic_core import CoreSchema, PydanticCustomError

from mirror.config import values
from mirror.config.agreement import (
    access_disagreements,
    disagreements,
    logins_disagreements,
    proxy_disagreements,
    upstream_disagreements,
)
from mirror.config.kinds import (
    ByteCount,
    ClientNetwork,
    Count,
    DockerConfigFile,
    Duration,
    DurationOrUnlimited,
    FilePath,
    FolderPath,
    Glob,
    HeadersDuration,
    HelperName,
    HostName,
    Listen,
    Network,
    Password,
    ProxyUrl,
    PullGlob,
    Rate,
    ReadableFile,
    Retries,
    SecretFile,
    Share,
    SomeDuration,
    Switch,
    Text,
    UpstreamName,
    UpstreamUrl,
    Url,
    UsersFile,
    Workers,
)
from mirror.config.schema import as_in_a_file
from mirror.config.values import ListenAddress

_none_is_empty = BeforeValidator(lambda value: {} if value is None else value)
"""A section whose every line is commented out reads as null: it has its defaults."""


class Section(BaseModel):
    """A part of the configuration: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return as_in_a_file(cls, handler.resolve_ref_schema(handler(core)))


class Tls(Section):
    certificate: ReadableFile = Field(description="PEM file of the certificate and the chain after it.")
    key: ReadableFile = Field(description="PEM file of the certificate's private key.")
    client_ca: ReadableFile | None = Field(
        default=None,
        description="PEM file of certificate authorities: clients must show a certificate one of them signed; "
        "null asks for none.",
    )


class Listener(Section):
    """Where clients are answered: an address, and whether TLS is spoken there."""

    address: Listen = Field(description="HOST:PORT; IPv6 in brackets and quotes; port 0 takes a free one.")
    tls: Tls | None = Field(
        default=None, description="What to serve HTTPS with at this address, instead of tls at the top; null is plain."
    )

    @property
    def scheme(self) -> Literal["http", "https"]:
        return "https" if self.tls else "http"


Listeners = Annotated[
    tuple[Listener, ...],
    BeforeValidator(values.listeners, json_schema_input_type=Listen | Listener | tuple[Listen | Listener, ...]),
    AfterValidator(values.distinct_addresses),
]


class Log(Section):
    format: Literal["auto", "human", "json"] = Field(
        default="auto", description="How lines look: human, json, or auto: human on a terminal, else json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least a line must matter; warning and error leave out the lines of requests."
    )


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
    """One account, given in one of three ways: user and password; a docker config.json; a credential helper."""

    username: Text | None = Field(default=None, description="User name at the upstream.")
    password: Password | None = Field(
        default=None,
        repr=False,
        description="Password or token, as ${NAME} of the environment: it is never written into the file.",
    )
    password_file: SecretFile | None = Field(
        default=None, description="File that holds the password or token, read again when it changes."
    )
    docker_config: DockerConfigFile | None = Field(
        default=None,
        description="File in the format of docker's config.json: auths, credHelpers and credsStore are used.",
    )
    helper: HelperName | None = Field(
        default=None, description="Name of a credential helper: the program docker-credential-<name> is asked."
    )


Accounts = Annotated[
    tuple[Credentials, ...],
    BeforeValidator(values.one_or_many, json_schema_input_type=Credentials | tuple[Credentials, ...]),
]
"""A list of accounts, or the only one of them without the list."""


class Timeouts(Section):
    connect: SomeDuration = Field(default=10.0, description="Duration: how long a connection may take, TLS included.")
    headers: HeadersDuration = Field(
        default=18.0,
        description="Duration, 18s at most: how long token, redirects, repeats and headers may take together.",
    )
    read: SomeDuration = Field(
        default=30.0, description="Duration: how long a body may pause; its rate is judged over this time as well."
    )


class ClientCertificate(Section):
    certificate: ReadableFile = Field(description="PEM file of the certificate shown to the upstream, chain after it.")
    key: ReadableFile = Field(description="PEM file of the certificate's private key.")


class Proxy(Section):
    url: ProxyUrl = Field(
        description="URL of the proxy, http or https; environment: what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; "
        "none: no proxy."
    )
    username: Text | None = Field(default=None, description="User name at the proxy.")
    password: Password | None = Field(
        default=None,
        repr=False,
        description="Password for the proxy, as ${NAME} of the environment: it is never written into the file.",
    )
    password_file: SecretFile | None = Field(
        default=None, description="File that holds the password for the proxy, read again when it changes."
    )


OptionalProxy = Annotated[Proxy | None, BeforeValidator(values.proxy, json_schema_input_type=ProxyUrl | Proxy | None)]
"""A proxy as a section, or its URL alone."""


class Mirror(Section):
    url: Url = Field(description="Base URL of the mirror, http or https, without /v2.")
    credentials: Accounts = Field(
        default=(), description="What to log in with there, and nowhere else; none is anonymous."
    )
    realms: tuple[HostName, ...] = Field(
        default=(), description="Further hosts, host[:port], that may be given its credentials."
    )
    ca_file: ReadableFile | None = Field(
        default=None, description="PEM file of certificate authorities to trust for it besides the system's."
    )
    insecure: Switch = Field(default=False, description="Whether its TLS certificate is taken unchecked.")
    send_ns: Switch = Field(default=True, description="Whether requests say the upstream's name, as ?ns=.")
    resolve: Switch = Field(default=False, description="Whether it is also asked what tags point at.")


Mirrors = Annotated[
    tuple[Mirror, ...],
    BeforeValidator(values.mirrors, json_schema_input_type=Url | Mirror | tuple[Url | Mirror, ...]),
]
"""A list of mirrors, each a section or its URL alone; one of them needs no list."""


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


class UpstreamDefaults(Section):
    """What every upstream has; given under ``upstream_defaults``, it holds for those that do not say otherwise."""

    mirrors: Mirrors = Field(default=(), description="Mirrors of it, asked first, in order, for content by digest.")
    credentials: Accounts = Field(
        default=(), description="Account to log in with, or a list of them; none is anonymous."
    )
    quota_floor: Share = Field(
        default=0.0,
        description="Share of the pull quota, such as 10%, that is not spent on tags that can be answered stale.",
    )
    allow: tuple[PullGlob, ...] | None = Field(
        default=None, description="Patterns of what may be pulled, repository[:tag]; null is everything."
    )
    deny: tuple[PullGlob, ...] = Field(
        default=(), description="Patterns of what may not be pulled, repository[:tag]; wins over allow."
    )
    offline: Switch = Field(default=False, description="Whether it is never asked: only what is kept is served.")
    proxy: OptionalProxy = Field(
        default=None, description="Proxy to reach it by; null is what the setting proxy at the top says."
    )
    ca_file: ReadableFile | None = Field(
        default=None, description="PEM file of certificate authorities to trust for this upstream besides the system's."
    )
    client_certificate: ClientCertificate | None = Field(
        default=None, description="Certificate shown to the upstream's own host; null is none."
    )
    insecure: Switch = Field(
        default=False, description="Whether the TLS certificate of its own host is taken unchecked."
    )
    realms: tuple[HostName, ...] = Field(
        default=(),
        description="Further hosts, host[:port], that may be given the credentials, besides the registry's own "
        "host and https hosts of its domain.",
    )
    redirects_to: tuple[Network, ...] = Field(
        default=(), description="Private networks that redirects and token realms of this upstream may lead to."
    )
    connections: Count = Field(
        default=None, description="Most requests to it at the same time, of all workers together; or unlimited."
    )
    rate: Rate = Field(
        default=None, description="Most bytes a second fetched from it, of all workers together; or unlimited."
    )
    minimum_rate: Rate = Field(
        default=1024,
        description="Bytes a second below which a body counts as broken off, judged over timeouts.read; or unlimited.",
    )
    retries: Retries = Field(
        default=2, description="How often a request that failed is repeated, 0 to 10, while there is time for it."
    )
    timeouts: Annotated[Timeouts, _none_is_empty] = Field(
        default_factory=Timeouts, description="How long the phases of a request may take."
    )
    breaker_window: Duration = Field(
        default=10.0, description="Duration: how long a host that does not answer is left alone; 0s is never."
    )
    unverified_ranges: Switch = Field(
        default=True,
        description="Whether ranges of a blob that is still arriving are sent before its digest can be checked.",
    )
    tags: Annotated[Tags, _none_is_empty] = Field(default_factory=Tags, description="How long tags are trusted.")


class Upstream(UpstreamDefaults):
    url: UpstreamUrl = Field(
        description="Base URL of the registry, http or https, without /v2; {host} in it is what a pattern matched."
    )
    names: tuple[HostName, ...] = Field(
        default=(), description="Other names, host[:port], in ns or Host that mean this upstream."
    )


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
    tls: Tls | None = Field(
        default=None, description="What to serve HTTPS with, where a listener says nothing else; null is plain HTTP."
    )
    listen: Annotated[Listeners, AfterValidator(values.some_listener)] = Field(
        default=(Listener(address=ListenAddress("127.0.0.1", 5000)),),
        validate_default=True,
        description="HOST:PORT, or a section with address and tls; or a list of them.",
    )
    admin_listen: Listeners = Field(
        default=(),
        description="As listen: where /metrics and what else is for administrators is answered, and no longer at "
        "the addresses of listen; none given is there.",
    )
    trusted_proxies: tuple[ClientNetwork, ...] = Field(
        default=(),
        description="Networks of reverse proxies that are believed whom they ask for, by which scheme, host and path.",
    )
    log: Annotated[Log, _none_is_empty] = Field(default_factory=Log, description="How the service speaks.")
    workers: Workers = Field(
        default="auto", description="Worker processes, 1 to 256; auto: one for each CPU this service may use."
    )
    storage: Annotated[Storage, _none_is_empty] = Field(default_factory=Storage, description="Where things are kept.")
    offline: Switch = Field(
        default=False, description="Whether no upstream is ever asked: only what is kept is served."
    )
    proxy: OptionalProxy = Field(
        default=None, description="Proxy to reach upstreams by, those that say nothing else; null is none."
    )
    upstream_defaults: Annotated[UpstreamDefaults, _none_is_empty] = Field(
        default_factory=UpstreamDefaults, description="What holds for every upstream that does not say otherwise."
    )
    upstreams: dict[UpstreamName, Upstream] = Field(
        default_factory=builtin_upstreams,
        validate_default=True,
        description="Registries to fetch from, by the name images have there, host[:port]; * stands for any part of "
        "one label. When given they replace the built-in ones; {} is none.",
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

    @field_validator("listen", "admin_listen", mode="after")
    @classmethod
    def _with_tls(cls, listeners: tuple[Listener, ...], info: ValidationInfo) -> tuple[Listener, ...]:
        """Give every listener what it does not say itself."""
        tls = info.data.get("tls")
        return tuple(one if "tls" in one.model_fields_set else one.model_copy(update={"tls": tls}) for one in listeners)

    @field_validator("admin_listen", mode="after")
    @classmethod
    def _listens_once(cls, listeners: tuple[Listener, ...], info: ValidationInfo) -> tuple[Listener, ...]:
        hint = "give administrators a port of their own"
        for address in (one.address for one in listeners):
            for taken in (one.address for one in info.data.get("listen", ())):
                if address == taken and address.port:
                    raise values.wrong(f"{address} is in listen already", hint, quiet="is in listen already")
                if address.meets(taken):
                    message = f"{address} has addresses in common with {taken} in listen"
                    raise values.wrong(message, hint, quiet="has addresses in common with those in listen")
        return listeners

    @field_validator("upstreams", mode="after")
    @classmethod
    def _with_defaults(cls, upstreams: dict[str, Upstream], info: ValidationInfo) -> dict[str, Upstream]:
        """Give every upstream what it does not say itself."""
        defaults = info.data.get("upstream_defaults")
        if defaults is None:
            return upstreams  # it has its own problem
        return {name: _filled(upstream, defaults) for name, upstream in upstreams.items()}

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        names = {name: dict(enumerate(upstream.names)) for name, upstream in self.upstreams.items()}
        given = {name: upstream.model_dump(exclude_unset=True) for name, upstream in self.upstreams.items()}
        found = chain(
            disagreements(names, self.default_upstream, own=dict(enumerate(self.names))),
            upstream_disagreements(given),
            logins_disagreements(("upstream_defaults",), self.upstream_defaults.model_dump(exclude_unset=True)),
            proxy_disagreements(("proxy",), self.proxy.model_dump() if self.proxy else None),
            access_disagreements(self.access.model_dump(exclude_unset=True)),
        )
        for path, message, suggestion, _ in found:
            raise PydanticCustomError(
                DISAGREEMENT, "{message}", {"message": message, "suggestion": suggestion, "path": path}
            )
        return self


SectionT = TypeVar("SectionT", bound=Section)


def _filled(section: SectionT, defaults: Section) -> SectionT:
    """Return a section in which what was not given is what was given in ``defaults``; sections in it likewise."""
    update: dict[str, Any] = {}
    for name in defaults.model_fields_set:
        value, default = getattr(section, name), getattr(defaults, name)
        if name not in section.model_fields_set:
            update[name] = default
        elif isinstance(value, Section) and isinstance(default, type(value)) and not isinstance(value, WHOLE):
            update[name] = _filled(value, default)
    return section.model_copy(update=update) if update else section


WHOLE = (Proxy, ClientCertificate)
"""Sections that hold together: half of one and half of another would make no sense."""

DISAGREEMENT = "disagreement"
"""Type of the error that settings which are each right do not go together."""
