"""A judge of registries: every MUST and SHOULD of the OCI distribution specification as a named case.

``case.py`` says what a case is, ``stage.py`` what it is given, the modules that ``cases.py`` lists hold them by
section; ``run.py`` tries them on a registry, ``report.py`` and ``documents.py`` say what became of them.
"""

from mirror.conformance.case import Version
from mirror.conformance.client import Login, Unreachable
from mirror.conformance.run import Judgement, judge
from mirror.conformance.stage import Options

__all__ = ["Judgement", "Login", "Options", "Unreachable", "Version", "judge"]
