"""All cases, in the order they are tried: those that look at every answer of the run come last."""

from __future__ import annotations

# isort: off
from mirror.conformance import (
    pull as pull,
    ranges as ranges,
    proxying as proxying,
    uploads as uploads,
    chunks as chunks,
    mounts as mounts,
    algorithms as algorithms,
    manifests as manifests,
    subjects as subjects,
    tags as tags,
    referrers as referrers,
    management as management,
    basics as basics,
)

# isort: on
from mirror.conformance.case import registered

CASES = registered()
