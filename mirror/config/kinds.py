"""What kinds of single values there are: how each is read, written again, described to people and to editors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetJsonSchemaHandler, PlainSerializer, SecretStr
from pydantic_core import CoreSchema

from mirror.config import units, values
from mirror.config.schema import SOMETHING
from mirror.config.values import ListenAddress


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Part of the type of a setting. takes: for people. schema: what a file may have there, as JSON Schema 2020-12."""

    takes: str
    schema: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)


def _text(pattern: str = "", **more: Any) -> dict[str, Any]:
    """Text with something in it. Patterns are kept to what ECMA-262 and Python agree on."""
    return {"type": "string", "pattern": pattern or SOMETHING, **more}


def _number_or(pattern: str, **number: Any) -> dict[str, Any]:
    return {"anyOf": [{"type": "number", **number}, _text(pattern)]}


_DURATION = r"^\s*[0-9]{1,20}(\.[0-9]{1,20})?\s*(ms|s|m|h|d)?\s*$"
_SOME_DURATION = r"^\s*(?![0.]+\s*[a-z]*\s*$)[0-9]{1,20}(\.[0-9]{1,20})?\s*(ms|s|m|h|d)?\s*$"
_SIZE = r"^\s*[0-9]{1,20}(\.[0-9]{1,20})?\s*([bB]|[kKmMgGtTpP][iI]?[bB])?\s*"
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = rf"({_LABEL}(\.{_LABEL})*|\[[0-9a-fA-F:.]+(%[a-zA-Z0-9_.-]+)?\])"
_PORT = r"[0-9]{1,5}"
_GLOB = r"[a-z0-9._*/-]+"
_URL = r"^[hH][tT][tT][pP][sS]?://[^\s@?#]+$"
_NETWORK = r"^[0-9a-fA-F:.]+(/[0-9.]+)?$"
UNLIMITED = {"const": "unlimited"}
_NULL = {"type": "null"}

Text = Annotated[str, BeforeValidator(values.text), Kind("text", _text())]
Switch = Annotated[bool, BeforeValidator(values.switch), Kind("true or false", {"type": "boolean"})]
Duration = Annotated[
    float,
    BeforeValidator(values.duration),
    PlainSerializer(units.duration, when_used="json"),
    Kind("duration", _number_or(_DURATION, minimum=0)),
]
SomeDuration = Annotated[
    float,
    BeforeValidator(values.some_duration),
    PlainSerializer(units.duration, when_used="json"),
    Kind("duration, not 0", _number_or(_SOME_DURATION, exclusiveMinimum=0)),
]
HeadersDuration = Annotated[
    float,
    BeforeValidator(values.headers_duration),
    PlainSerializer(units.duration, when_used="json"),
    Kind("duration, 18s at most", _number_or(_SOME_DURATION, exclusiveMinimum=0, maximum=18)),
]
DurationOrUnlimited = Annotated[
    float | None,
    BeforeValidator(values.duration_or_unlimited),
    PlainSerializer(units.duration, when_used="json"),
    Kind("duration or unlimited", {"anyOf": [{"type": "number", "minimum": 0}, _text(_DURATION), UNLIMITED, _NULL]}),
]
ByteCount = Annotated[
    int,
    BeforeValidator(values.byte_count),
    PlainSerializer(units.size, when_used="json"),
    Kind("size", {"anyOf": [{"type": "integer", "minimum": 1}, _text(_SIZE + "$")]}),
]
Rate = Annotated[
    int | None,
    BeforeValidator(values.rate),
    PlainSerializer(units.rate, when_used="json"),
    Kind(
        "rate or unlimited",
        {"anyOf": [{"type": "integer", "minimum": 1}, _text(_SIZE + r"(/s)?\s*$"), UNLIMITED, _NULL]},
    ),
]
Share = Annotated[
    float,
    BeforeValidator(values.share),
    PlainSerializer(units.share, when_used="json"),
    Kind("share, 0% to 100%", {"anyOf": [_text(r"^\s*[0-9]{1,3}(\.[0-9]{1,6})?\s*%\s*$"), {"const": 0}]}),
]
Count = Annotated[
    int | None,
    BeforeValidator(values.count_or_unlimited),
    PlainSerializer(units.count, when_used="json"),
    Kind(
        "1 to 10000, or unlimited", {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 10_000}, UNLIMITED, _NULL]}
    ),
]
Retries = Annotated[
    int, BeforeValidator(values.retries), Kind("0 to 10", {"type": "integer", "minimum": 0, "maximum": 10})
]
Workers = Annotated[
    int | Literal["auto"],
    BeforeValidator(values.workers),
    Kind("auto, or 1 to 256", {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 256}]}),
]

Listen = Annotated[
    ListenAddress,
    BeforeValidator(values.listen_address),
    PlainSerializer(str, return_type=str, when_used="json"),
    Kind("HOST:PORT", _text(rf"^{_HOST}:{_PORT}$".replace("a-z0-9_", "a-zA-Z0-9_"))),
]
HostName = Annotated[str, BeforeValidator(values.host_name), Kind("host or host:port", _text(rf"^{_HOST}(:{_PORT})?$"))]
UpstreamName = Annotated[
    str,
    BeforeValidator(values.upstream_name),
    Kind("host, host:port or a pattern", _text(rf"^{_HOST}(:{_PORT})?$".replace("a-z0-9_", "a-z0-9_*"))),
]
Url = Annotated[str, BeforeValidator(values.url), Kind("URL", _text(_URL))]
UpstreamUrl = Annotated[str, BeforeValidator(values.upstream_url), Kind("URL", _text(_URL))]
ProxyUrl = Annotated[
    str,
    BeforeValidator(values.proxy_url),
    Kind("URL, environment or none", {"anyOf": [{"enum": ["environment", "none"]}, _text(_URL)]}),
]
Network = Annotated[values.Network, BeforeValidator(values.network), Kind("network", _text(_NETWORK))]
ClientNetwork = Annotated[values.Network, BeforeValidator(values.client_network), Kind("network", _text(_NETWORK))]
Glob = Annotated[str, BeforeValidator(values.local_glob), Kind("pattern", _text(rf"^{_GLOB}$"))]
PullGlob = Annotated[
    str, BeforeValidator(values.pull_glob), Kind("pattern", _text(rf"^{_GLOB}(:[A-Za-z0-9._*-]{{1,128}})?$"))
]
HelperName = Annotated[
    str,
    BeforeValidator(values.helper_name),
    Kind("name of a helper", _text(r"^(?!docker-credential-)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")),
]

FilePath = Annotated[Path, BeforeValidator(values.file_path), Kind("path", _text())]
FolderPath = Annotated[Path, BeforeValidator(values.readable_folder), Kind("path of a folder", _text())]
ReadableFile = Annotated[Path, BeforeValidator(values.readable_file), Kind("path of a file", _text())]
SecretFile = Annotated[Path, BeforeValidator(values.secret_file), Kind("path of a file", _text())]
DockerConfigFile = Annotated[Path, BeforeValidator(values.docker_config_file), Kind("path of a file", _text())]
UsersFile = Annotated[Path, BeforeValidator(values.users_file), Kind("path of a file", _text())]
Password = Annotated[
    SecretStr,
    BeforeValidator(values.password),
    Kind("${NAME} of the environment", _text(r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")),
]
