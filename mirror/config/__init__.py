"""Typed settings: what can be set, what it means, and how a file becomes it.

``models`` declares every setting once; ``values`` reads single ones; ``document`` reads YAML with places;
``load`` puts them together; ``problems`` is what is said when something is wrong.
"""

from mirror.config.load import COMMAND_LINE, load_config
from mirror.config.models import (
    Access,
    ByteCount,
    Config,
    Credentials,
    Duration,
    Limits,
    Push,
    Section,
    Storage,
    Tags,
    Tls,
    Upstream,
    builtin_upstreams,
    default_root,
)
from mirror.config.problems import ConfigError, Problem
from mirror.config.values import ListenAddress

__all__ = [
    "COMMAND_LINE",
    "Access",
    "ByteCount",
    "Config",
    "ConfigError",
    "Credentials",
    "Duration",
    "Limits",
    "ListenAddress",
    "Problem",
    "Push",
    "Section",
    "Storage",
    "Tags",
    "Tls",
    "Upstream",
    "builtin_upstreams",
    "default_root",
    "load_config",
]
