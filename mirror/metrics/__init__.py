"""Prometheus metrics: declared once, right across workers."""

from mirror.metrics.declared import (
    Metrics,
    ParentMetrics,
    Read,
    add_slot,
    counted,
    counted_since,
    method_class,
    prepare,
    reset_gauges,
    status_class,
)
from mirror.metrics.values import Declared, Histogram, Value

__all__ = [
    "Declared",
    "Histogram",
    "Metrics",
    "ParentMetrics",
    "Read",
    "Value",
    "add_slot",
    "counted",
    "counted_since",
    "method_class",
    "prepare",
    "reset_gauges",
    "status_class",
]
