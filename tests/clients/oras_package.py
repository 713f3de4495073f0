"""The Python package ``oras``, as a program of its own: it does its requests inside the namespace.

python -m tests.clients.oras_package push REFERENCE FILE basic|token [USER PASSWORD]
python -m tests.clients.oras_package pull REFERENCE FOLDER basic|token [USER PASSWORD]
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import oras.client
import oras.decorator

# It tries everything six times, up to 83 seconds apart, refusals as well.
oras.decorator.time = SimpleNamespace(sleep=lambda seconds: None)


def main(doing: str, reference: str, place: str, backend: str, *login: str) -> None:
    client = oras.client.OrasClient(insecure=True, auth_backend=backend)
    if login or backend == "basic":
        client.auth.set_basic_auth(*(login or ("", "")))  # by Basic it always sends some
    if doing == "push":
        client.push(target=reference, files=[place], disable_path_validation=True)
    else:
        print(*client.pull(target=reference, outdir=place))


if __name__ == "__main__":
    main(*sys.argv[1:])
