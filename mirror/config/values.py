"""What single settings look like in a file, and what they become: durations, sizes, addresses, names.

Each function takes what YAML or Python code gave and returns the value, or raises what ``wrong`` makes: a
message that says what is expected. A message never repeats a value that may hold a secret; what is said when the value
is not written in the file repeats nothing of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, ValidationInfo
from pydantic_core import PydanticCustomError

from mirror.config.problems import did_you_mean

Network = IPv4Network | IPv6Network

MAX_BYTES = 2**63 - 1
MAX_SECONDS = 100 * 365 * 86400.0
"""A hundred years: anything longer is a mistake, and sums of times stay exact."""

_DURATION = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_BYTES = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgtp", start=1)
    for ending, base in (("b", 1000), ("ib", 1024))
}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*)|\[(?P<v6>[0-9a-fA-F:.]+(?:%[a-zA-Z0-9_.-]+)?)\]", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_GLOB_PART = re.compile(r"[a-z0-9._*-]+", re.ASCII)
_TAG_GLOB = re.compile(r"[A-Za-z0-9._*-]{1,128}", re.ASCII)
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)

_WEBSITES = ("hub.docker.com", "docker.com", "www.docker.com", "docker.io", "www.docker.io")

HOST_PLACE = "{host}"
"""What stands in a pattern's URL for the host that was matched."""
_ANY_HOST = "host-that-was-matched"


WITHOUT_QUOTES = "write it without quotes"
"""A suggestion that repeats nothing of the value."""


def wrong(message: str, suggestion: str = "", *, quiet: str | None = None) -> PydanticCustomError:
    """Make the error of a value that cannot be used.

    quiet: the message when the value may not be repeated; needed where the message has something of it.
    """
    said = {"message": message, "suggestion": suggestion, "quiet": message if quiet is None else quiet}
    return PydanticCustomError("setting", "{message}", said)


def expected(what: str, value: Any, suggestion: str = "") -> PydanticCustomError:
    """Make the error of a value that is something else than expected."""
    return wrong(f"expected {what}, got {_shown(value)}", suggestion, quiet=f"expected {what}")


def _reworded(error: PydanticCustomError, old: str, new: str, suggestion: str | None = None) -> PydanticCustomError:
    """Return an error that ``wrong`` made, in other words."""
    said = {key: str(value) for key, value in (error.context or {}).items()}
    return wrong(
        said["message"].replace(old, new),
        said["suggestion"] if suggestion is None else suggestion,
        quiet=said["quiet"].replace(old, new),
    )


def kind(value: Any) -> str:
    """Say what sort of value this is, never the value itself."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def _unquoted(value: Any) -> str:
    """Suggest to take the quotes off a number."""
    return WITHOUT_QUOTES if isinstance(value, str) and value.strip().isdecimal() else ""


def text(value: Any) -> str:
    """Check for text with something in it."""
    if not isinstance(value, str):
        quotes = "put it in quotes" if isinstance(value, (bool, int, float)) else ""
        raise wrong(f"expected text, got {kind(value)}", quotes)
    if not value.strip():
        raise wrong("expected text, got an empty one")
    return value


def _shown(value: Any) -> str:
    """Repeat a value in a message: short, on one line, and not if it may hold a password."""
    if isinstance(value, str):
        return json.dumps(value[:60], ensure_ascii=not value.isprintable()) if "@" not in value else "other text"
    return str(value)[:60] if type(value) in (int, float) else kind(value)


# ---- units ----


def duration(value: Any) -> float:
    """Read a duration: ``500ms``, ``60s``, ``1m``, ``2h``, ``1d``; a plain number is in seconds."""
    seconds: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(min(value, 2 * MAX_SECONDS))
    elif isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        seconds = float(Decimal(found[1]) * _SECONDS[found[2] or "s"])
    if seconds is None or math.isnan(seconds):
        note = "it cannot be unlimited" if value == "unlimited" else ""
        raise expected("a duration such as 500ms, 60s, 5m, 2h or 1d", value, note)
    if seconds < 0:
        raise wrong("a duration cannot be negative")
    if seconds > MAX_SECONDS:
        raise wrong("a duration cannot be longer than 36500d")
    return seconds


def some_duration(value: Any) -> float:
    """Read a duration that may not be zero."""
    seconds = duration(value)
    if not seconds:
        raise wrong("must be longer than 0s")
    return seconds


def duration_or_unlimited(value: Any) -> float | None:
    """Read a duration, or ``unlimited`` as None."""
    if value is None or value == "unlimited":
        return None
    try:
        return duration(value)
    except PydanticCustomError as error:
        raise _reworded(error, "or 1d", "or 1d, or unlimited", "") from None


def byte_count(value: Any) -> int:
    """Read a size of at least one byte: ``4MiB`` (binary), ``10GB`` (decimal); a plain number is in bytes."""
    size: Decimal | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        size = Decimal(value)
    elif isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        unit = found[2].lower()
        if unit in ("k", "m", "g", "t", "p"):
            letter, number = unit.upper(), Decimal(found[1])
            binary, decimal = (f"{number * _BYTES[unit + ending]:,f}" for ending in ("ib", "b"))
            raise wrong(
                f"the unit {letter} can mean two things",
                f'write "{found[1]}{letter}iB" ({binary} bytes) or "{found[1]}{letter}B" ({decimal} bytes)',
                quiet="a unit of one letter can mean two things",
            )
        if unit in _BYTES:
            size = Decimal(found[1]) * _BYTES[unit]
    if size is None:
        raise expected("a size such as 512KiB, 4MiB or 10GB", value)
    if size != size.to_integral_value():
        raise wrong("expected a whole number of bytes")
    if not 1 <= size <= MAX_BYTES:
        raise wrong(f"expected a size from 1 to {MAX_BYTES} bytes")
    return int(size)


def workers(value: Any) -> Any:
    """Check for ``auto`` or 1 to 256."""
    if value == "auto" or (type(value) is int and 1 <= value <= 256):
        return value
    raise expected("auto or a number from 1 to 256", value, _unquoted(value))


def switch(value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        word = value.strip().lower() if isinstance(value, str) else ""
        hint = WITHOUT_QUOTES if word in ("true", "false", "yes", "no", "on", "off") else ""
        raise expected("true or false", value, hint or did_you_mean(word, ("true", "false")))
    return value


# ---- hosts and networks ----


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen. host: a name or an IP address without brackets; port: 0 takes a free one."""

    host: str
    port: int

    def meets(self, other: ListenAddress) -> bool:
        """Say whether no two sockets can listen on both: 0.0.0.0 is every IPv4 address, and :: every IPv6 one.

        What names stand for is not looked up.
        """
        if self.port != other.port or not self.port or (":" in self.host) != (":" in other.host):
            return False
        hosts = {self.host, other.host}
        return len(hosts) == 1 or (bool(hosts & {"0.0.0.0", "::"}) and all(map(_is_ip, hosts)))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _split_host(value: str) -> tuple[str, str | None]:
    """Split ``host[:port]``; both parts unchecked, brackets stay."""
    if value.startswith("["):
        host, bracket, rest = value.partition("]")
        return host + bracket, rest[1:] if rest.startswith(":") else (rest or None)
    host, colon, port = value.partition(":")
    return host, port if colon else None


def _is_host(host: str) -> bool:
    found = _HOST.fullmatch(host)
    if not found or len(host) > 253:
        return False
    if found["v6"] or host.rpartition(".")[2].isdigit():  # a name cannot end in digits only: it is IPv4
        return _is_ip(host.strip("[]"))
    return True


def _is_host_port(value: str) -> bool:
    host, port = _split_host(value)
    return _is_host(host) and (port is None or (bool(_PORT.fullmatch(port)) and 0 < int(port) < 65536))


def _is_ip(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def _is_v6(value: str) -> bool:
    return ":" in value and _is_ip(value)


def listen_address(value: Any) -> ListenAddress:
    """Read ``HOST:PORT``, an IPv6 address in brackets."""
    if isinstance(value, ListenAddress):
        return value
    if type(value) is int and 0 < value < 65536:
        raise wrong("expected HOST:PORT, got a number", f'write "127.0.0.1:{value}", or "0.0.0.0:{value}" for all')
    if not isinstance(value, str):
        raise wrong(f"expected HOST:PORT, got {kind(value)}")
    host, port = _split_host(value.lower())
    if not host and port and _PORT.fullmatch(port):
        raise wrong("expected HOST:PORT, got no host", f'write "127.0.0.1:{port}", or "0.0.0.0:{port}" for all')
    if not value.startswith("[") and value.count(":") > 1:
        whole, _, last = value.rpartition(":")
        hint = f'write "[{whole}]:{last}"' if _is_v6(whole) and _PORT.fullmatch(last) else ""
        raise wrong("expected HOST:PORT with an IPv6 address in brackets", hint)
    if not _is_host(host):
        raise expected("HOST:PORT such as 127.0.0.1:5000 or [::1]:5000", value)
    if port is None:
        raise wrong("expected HOST:PORT, got no port", f'write "{host}:5000"')
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise wrong("expected a port from 0 to 65535")
    return ListenAddress(str(ip_address(host[1:-1])) if host.startswith("[") else host, int(port))


def listeners(value: Any) -> Any:
    """Take listeners as sections, or any of them as its address alone; one of them needs no list."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(one if isinstance(one, (dict, BaseModel)) else {"address": one} for one in items)


def distinct_addresses(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check that no address is given twice, nor is part of another."""
    addresses = [one.address for one in found]
    for at, address in enumerate(addresses):
        for earlier in addresses[:at]:
            if address == earlier and address.port:
                raise wrong(f"{address} is given twice", quiet="an address is given twice")
            if address.meets(earlier):
                raise wrong(
                    f"{address} and {earlier} have addresses in common",
                    "leave one of them out, or give it a port of its own",
                    quiet="two of them have addresses in common",
                )
    return found


def some_listener(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check that there is a listener at all."""
    if not found:
        raise wrong("expected at least one HOST:PORT")
    return found


def host_name(value: Any) -> str:
    """Check ``host[:port]`` in lower case, as it stands in image names."""
    name = text(value)
    if name != name.lower() and _is_host_port(name.lower()):
        raise wrong("expected a host in lower case", f'did you mean "{name.lower()}"?')
    if _is_v6(name):
        raise wrong("expected an IPv6 address in brackets", f'did you mean "[{name}]"?')
    if _is_host_port(name):
        return name
    if "://" in name:
        inner = name.partition("://")[2].partition("/")[0].lower()
        hint = f'did you mean "{inner}"?' if _is_host_port(inner) else ""
        raise wrong("expected host or host:port, got a URL", hint)
    raise expected("host or host:port such as docker.io or registry.example.net:5000", name)


def url(value: Any) -> str:
    """Check the base URL of a registry; the path of the API is added to it.

    Returns it with a lower-case scheme and host and no slash at its end. Messages never repeat it.
    """
    address = text(value)
    if not address.isascii() or not address.isprintable() or " " in address:
        raise wrong("a URL has only printable ASCII characters without spaces")
    scheme, separator, _ = address.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        hint = f'write "https://{address}"' if not separator and _is_host_port(address.lower()) else ""
        raise wrong("expected a URL that begins with https:// or http://", hint)
    try:
        parts = urlsplit(address)
    except ValueError:
        raise wrong("expected a URL with a host, or host and port") from None
    if "@" in parts.netloc:
        raise wrong("a URL must not hold credentials", "put them under credentials: username and password_file")
    if "?" in address or "#" in address:
        raise wrong("a registry's URL has no query and no fragment")
    place = parts.netloc.lower()
    if not _is_host_port(place):
        raise wrong("expected a URL with a host, or host and port")
    if place in _WEBSITES:
        raise wrong(
            f"{place} is a website and not the registry of Docker Hub",
            'write "https://registry-1.docker.io"',
            quiet="a website and not the registry of Docker Hub",
        )
    path = parts.path.rstrip("/")
    if path.endswith("/v2"):
        raise wrong('"/v2" is added to the URL with each request', 'leave out the "/v2" at its end')
    return f"{parts.scheme.lower()}://{place}{path}"


def network(value: Any) -> Network:
    """Read a network such as ``10.0.0.0/8``, or one address; not one that must never be asked."""
    found = client_network(value)
    if found.is_link_local:
        raise wrong("link-local addresses are never asked, whatever is listed here")
    return found


def client_network(value: Any) -> Network:
    """Read a network such as ``10.0.0.0/8``, or one address, that clients may have."""
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    found: Network | None = None
    if isinstance(value, str):
        try:
            found = ip_network(value, strict=False)
        except ValueError:
            found = None
    if found is None:
        raise expected("a network such as 10.0.0.0/8 or fd00::/8", value)
    if _address_of(value) != str(found.network_address):
        raise wrong("the address has bits set beyond the length of its network", f'did you mean "{found}"?')
    return found


def _address_of(value: str) -> str:
    return str(ip_address(value.partition("/")[0]))


def local_glob(value: Any) -> str:
    """Check a pattern of repository names: ``*`` is any part of one component, ``**`` any number of them."""
    pattern = text(value)
    if not all(_GLOB_PART.fullmatch(part) and ("**" not in part or part == "**") for part in pattern.split("/")):
        raise wrong(
            "expected a pattern of repository names such as local/** or team-*/tools: lower-case letters, digits, "
            "and . _ - /; * stands for any part of one component, ** alone for any number of components"
        )
    return pattern


def upstream_name(value: Any) -> str:
    """Check the name of an upstream: a host, or a pattern of hosts in which ``*`` is any part of one label."""
    if isinstance(value, str) and "*" in value:
        if "**" in value or not _is_host_port(value.replace("*", "x")):
            note = "* stands for any part of one label" if "**" in value else ""
            raise expected("a pattern of hosts such as *.pkg.dev", value, note)
        if value.partition(":")[0].rpartition(".")[2].strip("*") == "" or "." not in value:
            raise wrong("a pattern needs a domain", "write for instance *.example.net: the world stays closed")
        return value
    return host_name(value)


def upstream_url(value: Any) -> str:
    """Check the base URL of an upstream, as ``url`` does; ``{host}`` in it is what the upstream's pattern matched."""
    if isinstance(value, str) and HOST_PLACE in value:
        return url(value.replace(HOST_PLACE, _ANY_HOST)).replace(_ANY_HOST, HOST_PLACE)
    return url(value)


def pull_glob(value: Any) -> str:
    """Check a pattern of what may be pulled: of repositories, as ``local_glob``, and perhaps ``:`` and one of tags."""
    pattern = text(value)
    repository, colon, tag = pattern.partition(":")
    parts = repository.split("/")
    if not all(_GLOB_PART.fullmatch(part) and ("**" not in part or part == "**") for part in parts) or (
        colon and not _TAG_GLOB.fullmatch(tag)
    ):
        raise wrong(
            "expected a pattern of repositories of the upstream, and perhaps of tags, such as library/*, team/** or "
            "library/alpine:3.*; * stands for any part of one component, ** alone for any number of components"
        )
    return pattern


# ---- upstreams ----


def one_or_many(value: Any) -> Any:
    """Take a list of sections, one without the list, or nothing."""
    if value is None:
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)


def mirrors(value: Any) -> Any:
    """Take mirrors as sections, or any of them as its URL alone."""
    return tuple({"url": one} if isinstance(one, str) else one for one in one_or_many(value))


def proxy(value: Any) -> Any:
    """Take a proxy as a section, or as its URL alone."""
    return {"url": value} if isinstance(value, str) else value


def proxy_url(value: Any) -> str:
    """Check for ``environment``, ``none``, or the URL of a proxy: host and port, no more."""
    if value in ("environment", "none"):
        return str(value)
    try:
        found = url(value)
    except PydanticCustomError as error:
        suggestion = None
        if "credentials" in str((error.context or {})["message"]):
            suggestion = "give the proxy as a section: url, username and password_file"
        elif isinstance(value, str) and "environment".startswith(value.lower() or "?"):
            suggestion = 'did you mean "environment"?'
        elif isinstance(value, str) and (meant := did_you_mean(value, ("environment", "none"), cutoff=0.75)):
            suggestion = meant
        raise _reworded(error, "expected a URL", "expected environment, none or a URL", suggestion) from None
    if urlsplit(found).path:
        raise wrong("a proxy's URL has a host and a port, and no path")
    return found


def helper_name(value: Any) -> str:
    """Check the name of a credential helper: what follows ``docker-credential-`` in its program's name."""
    name = text(value)
    if not _HELPER.fullmatch(name):
        raise wrong("expected the name of a credential helper, such as ecr-login", "letters, digits, and . _ - only")
    if name.startswith("docker-credential-"):
        raise wrong('"docker-credential-" is put before the name', f'write "{name.removeprefix("docker-credential-")}"')
    return name


def share(value: Any) -> float:
    """Read a share such as ``10%``; from 0 to 1."""
    found = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None and isinstance(value, (int, float)) and not isinstance(value, bool) and not value:
        return 0.0
    if found is None and isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 100:
        meant = value * 100 if value < 1 else value
        raise wrong("expected a share such as 10%", f'write "{meant:g}%"')
    if found is None or float(found[1]) > 100:
        raise expected("a share from 0% to 100%", value)
    return float(found[1]) / 100


def rate(value: Any) -> int | None:
    """Read bytes a second: a size, with ``/s`` behind it or not; ``unlimited`` is None."""
    if value is None or value == "unlimited":
        return None
    size = value.strip().removesuffix("/s") if isinstance(value, str) else value
    try:
        return byte_count(size)
    except PydanticCustomError as error:
        raise _reworded(error, "a size such as 512KiB, 4MiB or 10GB", "a rate such as 20MB/s") from None


def count_or_unlimited(value: Any) -> int | None:
    """Check for a number from 1 to 10000; ``unlimited`` is None."""
    if value is None or value == "unlimited":
        return None
    if type(value) is int and 1 <= value <= 10_000:
        return value
    raise expected("a number from 1 to 10000, or unlimited", value, _unquoted(value))


def retries(value: Any) -> int:
    """Check for a number from 0 to 10."""
    if type(value) is int and 0 <= value <= 10:
        return value
    raise expected("a number from 0 to 10", value, _unquoted(value))


def headers_duration(value: Any) -> float:
    """Read a duration of at most 18 s: clients are answered within 20."""
    seconds = some_duration(value)
    if seconds > 18:
        raise wrong("cannot be longer than 18s: clients must have an answer before they give up")
    return seconds


# ---- files ----


@dataclass(frozen=True, slots=True)
class Loading:
    """Passed through validation while a file is loaded. base: the folder relative paths start from."""

    base: Path


class Typed(str):
    """Text from the command line: a relative path in it starts from the working directory."""

    __slots__ = ()


def file_path(value: Any, info: ValidationInfo) -> Path:
    """Read a path: ``~`` is expanded; while loading, a relative one starts from the file's folder."""
    if isinstance(value, Path):
        found = value
    elif isinstance(value, str) and value.strip() and "\0" not in value:
        found = Path(value)
    else:
        raise wrong(f"expected a path, got {kind(value) if not isinstance(value, str) else 'none'}")
    try:
        found = found.expanduser()
    except RuntimeError:
        raise wrong("the home folder that ~ stands for is not known", "write the path in full") from None
    if isinstance(info.context, Loading):
        return (Path.cwd() if isinstance(value, (Typed, Path)) else info.context.base) / found
    return found


def readable_file(value: Any, info: ValidationInfo) -> Path:
    """Read the path of a file that is there and can be read; looked at only while loading."""
    found = file_path(value, info)
    if isinstance(info.context, Loading) and (reason := unreadable(found)):
        raise wrong(f"{json.dumps(str(found), ensure_ascii=False)}: {reason}", quiet=reason)
    return found


def readable_folder(value: Any, info: ValidationInfo) -> Path:
    """Read the path of a folder that is there; looked at only while loading."""
    found = file_path(value, info)
    if isinstance(info.context, Loading) and not found.is_dir():
        reason = "is no folder" if found.exists() else "no such folder"
        raise wrong(f"{json.dumps(str(found), ensure_ascii=False)}: {reason}", quiet=reason)
    return found


def secret_file(value: Any, info: ValidationInfo) -> Path:
    """Do as ``readable_file`` and keep quiet about the path: it is where people write the secret itself."""
    return _quiet_file(value, info, "expected the path of a file that holds the password")


def password(value: Any, info: ValidationInfo) -> SecretStr:
    """Take a password: while a file is loaded only one that is not written there, which comes as a ``SecretStr``."""
    if isinstance(info.context, Loading) and not isinstance(value, SecretStr):
        raise wrong("a password is never written into this file", "give password_file, or ${NAME} of the environment")
    return SecretStr(text(value.get_secret_value() if isinstance(value, SecretStr) else value))


def docker_config_file(value: Any, info: ValidationInfo) -> Path:
    """Do as ``readable_file`` and keep quiet about the path: it is where people write the secret itself."""
    return _quiet_file(value, info, "expected the path of a file such as docker's config.json")


def users_file(value: Any, info: ValidationInfo) -> Path:
    """Do as ``readable_file`` and keep quiet about the path: it is where people write a user's line itself."""
    return _quiet_file(value, info, "expected the path of a file of users, made by htpasswd -B")


def _quiet_file(value: Any, info: ValidationInfo, what: str) -> Path:
    found = file_path(value, info)
    if isinstance(info.context, Loading) and (reason := unreadable(found)):
        raise wrong(reason, what)
    return found


def unreadable(path: Path) -> str:
    """Say why a file cannot be read; "" when it can."""
    try:
        # opened, not asked about: only this knows every kind of permission. A pipe must not make us wait
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            return "is a folder, not a file"
        return "" if stat.S_ISREG(kind) else "is a pipe or a device, not a file"
    finally:
        os.close(fd)
