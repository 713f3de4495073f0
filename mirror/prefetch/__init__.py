"""Images fetched ahead of time: a client of a running mirror that has it fetch what a cluster will ask for.

``references.py`` reads what people write, ``platforms.py`` chooses from an index as containerd does, ``client.py``
asks the mirror, ``run.py`` goes through the images. Nothing is kept here: the bytes are read and dropped, as the
mirror keeps them.
"""

from mirror.prefetch.client import Login, Refused, Service, Trust, Unreachable, fingerprint
from mirror.prefetch.platforms import Platform, PlatformInvalid, parse_platform, this_machine
from mirror.prefetch.references import Image, ReferenceInvalid, parse_image, read_list
from mirror.prefetch.run import Pulled, Puller, Watcher

__all__ = [
    "Image",
    "Login",
    "Platform",
    "PlatformInvalid",
    "Pulled",
    "Puller",
    "ReferenceInvalid",
    "Refused",
    "Service",
    "Trust",
    "Unreachable",
    "Watcher",
    "fingerprint",
    "parse_image",
    "parse_platform",
    "read_list",
    "this_machine",
]
