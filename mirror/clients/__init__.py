"""What clients need to pull through a mirror: the exact files, and what is to be done besides.

``place.py`` is the mirror's address as nodes see it, ``registries.py`` what is mirrored there, ``plan.py`` what a
client is given. One module for each client knows its files: ``containerd.py``, ``docker.py``, ``containers.py`` (podman
and CRI-O), ``buildkit.py``, ``k3s.py``. ``tree.py`` puts files below a folder. Nothing here asks anybody anything.
"""

from collections.abc import Callable
from types import MappingProxyType

from mirror.clients import buildkit, containerd, containers, docker, k3s
from mirror.clients.place import Place, PlaceInvalid, parse_place, seen_by_nodes
from mirror.clients.plan import CannotDo, File, Plan, Setup
from mirror.clients.registries import Registry, mirrored, named
from mirror.clients.tree import Refusal, TreeError, Written, write_tree

PLANS: MappingProxyType[str, Callable[[Setup], Plan]] = MappingProxyType(
    {
        "containerd": containerd.plan,
        "docker": docker.plan,
        "podman": containers.podman,
        "cri-o": containers.cri_o,
        "buildkit": buildkit.plan,
        "k3s": k3s.plan,
    }
)
"""By the name of a client: what makes its plan."""

__all__ = [
    "PLANS",
    "CannotDo",
    "File",
    "Place",
    "PlaceInvalid",
    "Plan",
    "Refusal",
    "Registry",
    "Setup",
    "TreeError",
    "Written",
    "mirrored",
    "named",
    "parse_place",
    "seen_by_nodes",
    "write_tree",
]
