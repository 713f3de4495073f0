"""The application for administrators, answered at the addresses of ``admin_listen`` and nowhere else.

    /healthz /readyz /metrics      GET HEAD            operations.py

Rules for clients (``access``) do not hold here: who reaches these addresses may use them. Requests are counted as
those of clients are, and have no lines in the log: what asks here asks every few seconds.
"""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from mirror.api.errors import respond
from mirror.api.operations import operate
from mirror.metrics import method_class
from mirror.oci.errors import PathUnknown
from mirror.worker import WorkerContext

OPERATIONS: tuple[Literal["healthz", "readyz", "metrics"], ...] = ("healthz", "readyz", "metrics")


def build_admin(worker: WorkerContext) -> web.Application:
    """Return the application. A further endpoint is a route of it; the name of the route is what it is counted as."""
    app = web.Application(middlewares=[_answered(worker)])
    for operation in OPERATIONS:
        app.router.add_get(f"/{operation}", _operation(operation, worker), name=operation)
    return app


def _operation(operation: Literal["healthz", "readyz", "metrics"], worker: WorkerContext) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return await operate(operation, worker)

    return answer


def _answered(worker: WorkerContext) -> Middleware:
    """Return what counts every request, and gives every error the one shape."""

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPNotFound:
            there = " ".join(sorted(resource.canonical for resource in request.app.router.resources()))
            response = respond(PathUnknown(f"there is nothing here at {request.path[:200]}; there is {there}"))
        except Exception as error:  # whatever it is, who asks is told so in the one shape
            response = respond(error)
        if not response.prepared:
            response.headers["X-Content-Type-Options"] = "nosniff"
        endpoint = request.match_info.route.name or "unknown"
        worker.metrics.requests.labels(method_class(request.method), endpoint, str(response.status)).inc()
        return response

    return answered
