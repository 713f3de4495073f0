"""Processes, sockets, signals: one worker per core with SO_REUSEPORT, and the parent that minds them."""

from mirror.server.supervisor import HANG_LIMIT, serve

__all__ = ["HANG_LIMIT", "serve"]
