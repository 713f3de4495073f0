"""``python -m mirror`` is ``mirror``."""

from mirror.cli import main

main(prog_name="mirror")
