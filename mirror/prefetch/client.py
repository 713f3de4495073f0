"""A running mirror, asked as a client asks it: manifests as they are, blobs read to their end and dropped.

A blob is asked for with ``If-None-Match``: what the mirror has, and this repository may read, is a 304 and costs no
bytes. What breaks off is continued; who asks for patience (``Retry-After``) is given some.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl as ssl_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from mirror.access.gate import TOKEN_PATH
from mirror.oci.errors import ManifestInvalid
from mirror.oci.manifest import ACCEPT, Descriptor, Manifest, parse_manifest
from mirror.oci.names import Digest, Tag, digest_of
from mirror.oci.ranges import ContentRange, parse_content_range
from mirror.prefetch.references import Image

CONNECT_TRIES = 7
"""How often a mirror that does not answer is asked, within half a minute: one that restarts is back by then."""
CONTINUE_TRIES = 4
"""How often a body that breaks off is asked for again without a byte more."""
PAUSE = 0.2
"""Seconds before something is tried again, doubled each time."""
PATIENCE = 120.0
"""Seconds that ``Retry-After`` may make the requests for one registry wait, all in all, until one succeeds."""
SILENCE = 120.0
"""Seconds without a byte after which a body counts as broken off: longer than a mirror waits for its upstream."""
LARGEST_MANIFEST = 64 * 1024 * 1024
"""Bytes."""
_NOT_NOW = (429, 503)


Trust = ssl_module.SSLContext | aiohttp.Fingerprint | bool
"""How certificates are checked: by a context, by the one that is taken, as the system does (True)."""


class Unreachable(Exception):
    """The mirror does not answer, or no more."""


class Refused(Exception):
    """The mirror's answer is no content. status: of HTTP. The message has the mirror's own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Broken(Exception):
    """What came is not the content, or not all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who asks. password: a secret, shown nowhere."""

    user: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A manifest the mirror gave. hit: it was there. warning: why it may be old, when it may."""

    manifest: Manifest
    hit: bool
    warning: str | None


class Service:
    """One mirror. An async context manager; for one event loop."""

    def __init__(
        self,
        url: str,
        *,
        login: Login | None = None,
        headers: Mapping[str, str] = {},
        tls: Trust = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Remember how to ask.

        url: scheme and host. headers: sent with each request. sleep: waits for some seconds.
        """
        self.url = url.rstrip("/")
        self._headers = {"User-Agent": "mirror-pull", "Accept-Encoding": "identity", **headers}
        if login is not None:
            self._headers["Authorization"] = login.basic
        self._tls = tls
        self._sleep = sleep
        self._waited: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE),
            auto_decompress=False,
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._session.close()

    async def reach(self) -> None:
        """Ask for nothing in particular, once.

        Raises: Unreachable when nobody answers; Refused when a login is wanted, or is wrong.
        """
        try:
            async with self._session.get(self._address("/v2/"), allow_redirects=False) as response:
                if response.status != 200 and not (response.status == 401 and "Authorization" not in self._headers):
                    raise await _refused(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{self.url} does not answer: {_why(error)}") from error

    async def token(self) -> str:
        """Return a token of this mirror's, asking once. Raises: Unreachable, Refused."""
        try:
            async with self._session.get(self._address(TOKEN_PATH), allow_redirects=False) as response:
                if response.status != 200:
                    raise await _refused(response)
                found = json.loads(await response.content.read(65536))
                return str(found["token"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{self.url} does not answer: {_why(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(200, f"{self.url} answers something that is no token") from error

    async def manifest(self, image: Image, target: Tag | Digest) -> Found:
        """Get a manifest of an image's repository.

        Raises: Unreachable; Refused; Broken when it is not what was asked for.
        """
        path = f"manifests/{target}"
        for left in reversed(range(CONTINUE_TRIES)):
            async with self._asked(image, path, {"Accept": ACCEPT}, 200) as response:
                status = response.headers.get("Cache-Status", "")
                if not status.startswith("mirror;"):
                    raise Broken(f"{self.url} is no mirror: its answers have no Cache-Status; give a mirror's URL")
                try:
                    raw = await _read(response)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    if not left:
                        raise Broken(f"the manifest {target} broke off: {_why(error)}") from error
                    continue
                manifest = _parsed(raw, response, target)
                return Found(manifest=manifest, hit=_hit(response), warning=_warning(response))
        raise AssertionError("the last try returns or raises")

    async def blob(self, image: Image, blob: Descriptor, received: Callable[[int], None]) -> bool:
        """Have the mirror fetch a blob, and return whether it was there already.

        received: told of the bytes that arrive; fewer than none when some of them are void.
        Raises: Unreachable; Refused; Broken when it breaks off again and again, or is not the content.
        """
        path = f"blobs/{blob.digest}"
        body = _Body(blob, received)
        tries, anew = 0, False
        while True:
            before = body.read
            async with self._asked(image, path, body.headers, 200, 206, 304) as response:
                if response.status == 304:
                    return not body.began
                if _hit(response) and not body.began:
                    response.close()  # it is there, so nobody needs the body
                    return True
                body.begin(response)
                try:
                    async for piece in response.content.iter_any():
                        body.take(piece)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    tries = 0 if body.read > before else tries + 1
                    if tries >= CONTINUE_TRIES:
                        raise Broken(
                            f"{blob.digest} broke off {tries} times at {body.read} of {blob.size} bytes: {_why(error)}"
                        ) from error
                else:
                    if anew or not body.torn:
                        body.finish()
                        return False
                    anew = True
                    body.void()  # what was continued may not have fitted together
            await self._sleep(PAUSE * 2**tries)

    @asynccontextmanager
    async def _asked(
        self, image: Image, path: str, headers: Mapping[str, str], *good: int
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give an answer whose status is good, released afterwards. Raises: Unreachable, Refused."""
        address = self._address(f"/v2/{image.repository}/{path}?ns={quote(image.host, safe='')}")
        response = await self._ask(image.host, address, headers)
        try:
            if response.status not in good:
                raise await _refused(response)
            yield response
        finally:
            response.release()

    async def _ask(self, host: str, address: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send a request, again and again while it makes sense."""
        failed = 0
        while True:
            try:
                response = await self._session.get(address, headers=headers, allow_redirects=False)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failed += 1
                if failed >= CONNECT_TRIES:
                    raise Unreachable(f"{self.url} does not answer any more: {_why(error)}") from error
                await self._sleep(PAUSE * 2**failed)
                continue
            pause = _retry_after(response)
            waited = self._waited.get(host, 0.0)
            if pause is None:
                self._waited[host] = 0.0
                return response
            if waited + pause > PATIENCE:
                return response
            response.close()
            self._waited[host] = waited + pause
            await self._sleep(pause)

    def _address(self, path: str) -> URL:
        return URL(self.url + path, encoded=True)


def fingerprint(pem: str) -> aiohttp.Fingerprint:
    """Return what makes ``Service`` take one certificate only, the first of a PEM text. Raises: ValueError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    inner = pem.partition(begin)[2].partition(end)[0]
    der = ssl_module.PEM_cert_to_DER_cert(f"{begin}{inner}{end}\n") if inner else b""
    if not der:
        raise ValueError("there is no certificate in it")
    return aiohttp.Fingerprint(hashlib.sha256(der).digest())


class _Body:
    """A blob on its way: counted, hashed and dropped."""

    def __init__(self, blob: Descriptor, received: Callable[[int], None]) -> None:
        self._blob = blob
        self._received = received
        self._hash = blob.digest.hasher()
        self.read = 0
        self.began = False
        self._continued = False

    @property
    def torn(self) -> bool:
        """Say whether it was put together from several answers, and is not the content."""
        whole = self.read == self._blob.size and self._hash.hexdigest() == self._blob.digest.encoded
        return self._continued and not whole

    @property
    def headers(self) -> dict[str, str]:
        """What to ask for the rest with, or for nothing if the mirror has got all of it meanwhile."""
        tag = f'"{self._blob.digest}"'
        more = {"Range": f"bytes={self.read}-", "If-Range": tag} if self.read else {}
        return {"If-None-Match": tag, **more}

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """Take the headers of an answer. Raises: Broken when its range is not the one that was asked for."""
        self.began = True
        if response.status == 200:
            self.void()
            return
        wanted = ContentRange(self.read, self._blob.size - 1, self._blob.size)
        if parse_content_range(response.headers.get("Content-Range")) != wanted:
            raise Broken(f"{self._blob.digest} was asked for from byte {self.read}, and another range came")
        self._continued = True

    def take(self, piece: bytes) -> None:
        """Take bytes. Raises: Broken when they are too many."""
        self.read += len(piece)
        self._received(len(piece))
        if self.read > self._blob.size:
            raise Broken(f"{self._blob.digest} has more than the {self._blob.size} bytes its manifest says")
        self._hash.update(piece)

    def void(self) -> None:
        """Begin anew."""
        self._received(-self.read)
        self.read = 0
        self._continued = False
        self._hash = self._blob.digest.hasher()

    def finish(self) -> None:
        """Raises: Broken when what was read is not the content."""
        if self.read != self._blob.size:
            raise Broken(f"{self._blob.digest} has {self.read} bytes, and {self._blob.size} by its manifest")
        if self._hash.hexdigest() != self._blob.digest.encoded:
            raise Broken(f"what came for {self._blob.digest} has another digest")


def _parsed(raw: bytes, response: aiohttp.ClientResponse, target: Tag | Digest) -> Manifest:
    """Check a manifest against what it was asked by, and read it."""
    said = response.headers.get("Docker-Content-Digest", "")
    algorithm = target.algorithm if isinstance(target, Digest) else said.partition(":")[0]
    digest = digest_of(raw, algorithm if algorithm in ("sha256", "sha512") else "sha256")
    if isinstance(target, Digest) and digest != target:
        raise Broken(f"what came for the manifest {target} has another digest")
    try:
        return parse_manifest(raw, content_type=response.headers.get("Content-Type"), digest=digest)
    except ManifestInvalid as error:
        raise Broken(f"the manifest {digest} cannot be read: {error.message}") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for piece in response.content.iter_any():
        raw += piece
        if len(raw) > LARGEST_MANIFEST:
            response.close()
            raise Broken(f"the manifest has more than {LARGEST_MANIFEST} bytes")
    return bytes(raw)


def _hit(response: aiohttp.ClientResponse) -> bool:
    """Say whether the mirror had it (Cache-Status, RFC 9211 section 2)."""
    said = response.headers.get("Cache-Status", "").partition(",")[0]
    return "hit" in (part.strip() for part in said.split(";"))


def _warning(response: aiohttp.ClientResponse) -> str | None:
    """Return the text of a Warning (RFC 7234 section 5.5)."""
    found = response.headers.get("Warning")
    return _printable(found.partition('"')[2].rpartition('"')[0] or found) if found else None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return for how many seconds an answer asks to wait, None when it does not."""
    text = response.headers.get("Retry-After", "")
    return float(max(1, int(text[:6]))) if response.status in _NOT_NOW and text.isdecimal() else None


async def _refused(response: aiohttp.ClientResponse) -> Refused:
    """Return an error answer as an exception, in the words of its body if that has the shape of the specification."""
    said = ""
    try:
        error = json.loads(await response.content.read(65536))["errors"][0]
        said = f"{error['code']}: {error.get('message') or ''}".rstrip(": ")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    advice = ""
    if response.status == 401:
        given = "Authorization" in response.request_info.headers
        advice = "; are user and password right?" if given else "; give --user and --password-file"
    return Refused(response.status, f"{response.status} {_printable(said or response.reason or '')}{advice}")


def _why(error: Exception) -> str:
    """Return what broke a connection, in a few words."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "it has another certificate than its configuration; was it started before that was renewed?"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error}); give its authority by --ca-file"
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return _printable(str(error)) or type(error).__name__


def _printable(text: str) -> str:
    """Return text of somebody else's that may be shown on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:1000])
