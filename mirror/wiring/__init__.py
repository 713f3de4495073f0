"""The only package that chooses implementations: it makes the parts of a worker, and of commands, and joins them."""

from __future__ import annotations

from mirror.wiring.counts import show_storage
from mirror.wiring.folders import build_backup, build_proof, build_restore
from mirror.wiring.looking import build_explain, build_stats
from mirror.wiring.service import build_app

__all__ = [
    "build_app",
    "build_backup",
    "build_explain",
    "build_proof",
    "build_restore",
    "build_stats",
    "show_storage",
]
