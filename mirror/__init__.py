"""A pull-through caching mirror and OCI registry."""

__version__ = "0.1.0"
