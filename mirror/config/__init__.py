"""Typed settings: what can be set, what it means, and how a file becomes it.

``models`` declares every setting once; ``kinds`` and ``values`` say what single ones are; ``document`` reads YAML with
places; ``load`` puts them together; ``problems`` is what is said when something is wrong, ``origins`` where each
setting comes from.
"""

from mirror.config.kinds import ByteCount, Duration
from mirror.config.load import Loaded, load_config, read_config
from mirror.config.models import (
    Access,
    ClientCertificate,
    Config,
    Credentials,
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
from mirror.config.origins import COMMAND_LINE, Origin
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
    "Loaded",
    "Log",
    "Mirror",
    "Origin",
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
    "read_config",
]
