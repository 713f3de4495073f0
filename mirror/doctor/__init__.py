"""What the service needs, proved before it is missed: named checks, and what to do about each that fails.

``finding.py`` is what a check says, ``case.py`` what it is given, ``checks.py`` all of them in their order,
``going.py`` goes through them. Nothing here changes anything that stays.
"""

from mirror.doctor.case import Case, StandsForMany, chosen
from mirror.doctor.finding import Finding, Outcome
from mirror.doctor.going import examine

__all__ = ["Case", "Finding", "Outcome", "StandsForMany", "chosen", "examine"]
