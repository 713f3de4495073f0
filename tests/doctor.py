"""What tests of ``mirror doctor`` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mirror.config import Config
from mirror.doctor import Case, Finding


def case_of(root: Path, **settings: Any) -> Case:
    """Return a case with a root, no upstreams, and these settings."""
    values: dict[str, Any] = {"storage": {"root": root}, "upstreams": {}, "default_upstream": None, **settings}
    return Case(config=Config.model_validate(values))


def only(found: Iterable[Finding], name: str) -> Finding:
    """Return the one finding of a name."""
    (one,) = [finding for finding in found if finding.name == name]
    return one
