"""Typed settings: what can be set, what it means, and how a file becomes it.

``models`` declares every setting once; ``values`` reads single ones; ``document`` reads YAML with places;
``load`` puts them together; ``problems`` is what is said when something is wrong.
"""

from mirror.config.load import COMMAND_LINE, load_config
from mirror.config.models import (
    Access,
    ByteCount,
    ClientCertificate,
    Config,
    Credentials,
    Duration,
    Limits,
    Listener,
    Log,
    Mirror,
    Proxy,
    Push,
    Section,
    Storage,
    Tags,
    Timeouts,
    Tls,
    Upstream,
    UpstreamDefaults,
    builtin_upstreams,
    default_root,
)
from mirror.config.problems import ConfigError, Problem
from mirror.config.values import ListenAddress

__all__ = [
    "COMMAND_LINE",
    "Access",
    "ByteCount",
    "ClientCertificate",
    "Config",
    "ConfigError",
    "Credentials",
    "Duration",
    "Limits",
    "ListenAddress",
    "Listener",
    "Log",
    "Mirror",
    "Problem",
    "Proxy",
    "Push",
    "Section",
    "Storage",
    "Tags",
    "Timeouts",
    "Tls",
    "Upstream",
    "UpstreamDefaults",
    "builtin_upstreams",
    "default_root",
    "load_config",
]
