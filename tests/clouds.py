"""Registries of the clouds, as far as they differ from others in how one logs in.

Each is a ``FakeUpstream`` with the ways of one of them, learned from what clients had to do to get along with it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.fake_upstream import FakeUpstream, Request


class Ecr(FakeUpstream):
    """Amazon ECR: Basic with the user AWS and a token for some hours; blobs are elsewhere.

    A token that has expired is answered 403, without a challenge; or, with 401, as others do.
    """

    def __init__(self, token: str, *, expired: int = 403, **arguments: Any) -> None:
        self.expired = expired
        super().__init__(auth="basic", anonymous=False, users={"AWS": token}, redirect=True, **arguments)

    async def _registry(self, http: web.Request, request: Request) -> web.StreamResponse:
        if self.expired == 403 and request.authorization is not None and self._basic_user(request) is None:
            return await self._error(http, request, 403, "DENIED", "Your authorization token has expired.")
        return await super()._registry(http, request)


class Gar(FakeUpstream):
    """Google's: a challenge without scope, which is only at ``/v2/`` when silent; no POST for tokens."""

    def __init__(self, users: dict[str, str], **arguments: Any) -> None:
        super().__init__(auth="token", anonymous=False, users=users, challenge_scope=False, **arguments)
        self.silent = True

    def _unauthorized(self, request: Request, name: str | None) -> str | None:
        refused = super()._unauthorized(request, name)
        return "" if refused and self.silent and name is not None else refused

    async def _token(self, http: web.Request, request: Request) -> web.StreamResponse:
        if request.method == "POST":
            return await self._error(http, request, 404, "UNKNOWN", "not found")
        return await super()._token(http, request)


class Acr(FakeUpstream):
    """Azure's: tokens for an identity token by POST; GET wants a user; the field is ``access_token`` only.

    forms: what was sent by POST.
    """

    def __init__(self, identity: str, *, expired: tuple[int, bytes] = (401, b"{}"), **arguments: Any) -> None:
        super().__init__(auth="token", anonymous=False, token_field="access_token", say_expires=False, **arguments)
        self.identity = identity
        self.expired = expired
        self.forms: list[dict[str, str]] = []

    async def start(self) -> None:
        await super().start()
        self.realm = f"{self.url}/oauth2/token"

    async def _registry(self, http: web.Request, request: Request) -> web.StreamResponse:
        if request.path == "/oauth2/token":
            return await self._token(http, request)
        return await super()._registry(http, request)

    async def _token(self, http: web.Request, request: Request) -> web.StreamResponse:
        if request.method == "GET":
            if request.authorization is None:
                return await self._error(http, request, 400, "UNKNOWN", "no user")
            return await super()._token(http, request)
        form = {key: str(value) for key, value in (await http.post()).items()}
        self.forms.append(form)
        if form.get("grant_type") != "refresh_token" or form.get("service") != self.service:
            return await self._error(http, request, 400, "UNKNOWN", "unsupported")
        if form.get("refresh_token") != self.identity:
            status, body = self.expired
            return await self._send(http, request, body, {}, status=status, early_only=True)
        return await self._grant(http, request, form["scope"], "somebody")


class Ghcr(FakeUpstream):
    """GitHub's: the challenge of ``/v2/`` holds a scope that is nobody's, and nothing but ``pull`` is given."""

    def __init__(self, users: dict[str, str], **arguments: Any) -> None:
        super().__init__(auth="token", users=users, **arguments)

    def _unauthorized(self, request: Request, name: str | None) -> str | None:
        refused = super()._unauthorized(request, name)
        if not refused:
            return refused
        return f'{refused},scope="repository:user/image:pull"' if name is None else ""

    async def _token(self, http: web.Request, request: Request) -> web.StreamResponse:
        if not request.query.get("scope", "").endswith(":pull"):
            return await self._error(http, request, 403, "DENIED", "requested access to the resource is denied")
        return await super()._token(http, request)


class Thief(FakeUpstream):
    """A host that keeps everything it is sent, and has a token for everybody. seen: all of it, as text."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(auth="token", **arguments)
        self.seen: list[str] = []

    async def _token(self, http: web.Request, request: Request) -> web.StreamResponse:
        await self._note(http, request)
        return await self._grant(http, request, "repository:team/app:pull", None)

    async def _registry(self, http: web.Request, request: Request) -> web.StreamResponse:
        return await self._token(http, request)

    async def _note(self, http: web.Request, request: Request) -> None:
        self.seen.append(f"{request} {http.raw_path} {dict(request.headers)} {(await http.read()).decode()}")
