"""How the service speaks: log records, and a line for each request.

Both go to one descriptor that several processes share, for people on a terminal and as JSON for everything else.
"""

from mirror.logs.access import AccessLog
from mirror.logs.records import HumanFormatter, JsonFormatter, human_of, level_of, setup_logging

__all__ = ["AccessLog", "HumanFormatter", "JsonFormatter", "human_of", "level_of", "setup_logging"]
