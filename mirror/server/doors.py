"""The doors of a configuration: its addresses, who is answered there, and what is spoken.

Reservations outlive configurations: an address that two of them have stays reserved, so that nobody is refused while
one takes over from the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirror.config import Config, ListenAddress, Tls
from mirror.metrics import Metrics
from mirror.server.certificates import Certificate
from mirror.server.sockets import Reservation, reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """An address to be answered at. listen: as it is configured. certificate: of TLS, None for plain HTTP.

    admin: administrators are answered there, not clients.
    """

    listen: ListenAddress
    reservation: Reservation
    certificate: Certificate | None
    admin: bool

    @property
    def url(self) -> str:
        """Where to reach it; an unspecified address as it is."""
        return f"{'https' if self.certificate else 'http'}://{self.reservation.name}"

    @property
    def announcement(self) -> str:
        return f"administrators at {self.url}" if self.admin else f"listening on {self.url}"


def open_doors(config: Config, before: Sequence[Door] = ()) -> tuple[Door, ...]:
    """Load the certificates of a configuration and reserve its addresses, those that are not reserved yet.

    before: the doors there are. Raises: StartupError; what was reserved meanwhile is free again then.
    """
    wanted = [(one, False) for one in config.listen] + [(one, True) for one in config.admin_listen]
    certificates: dict[Tls, Certificate] = {}
    for listener, _ in wanted:
        if listener.tls is not None and listener.tls not in certificates:
            certificates[listener.tls] = Certificate(listener.tls)
    kept: defaultdict[object, list[Reservation]] = defaultdict(list)
    for door in before:
        kept[_key(door.listen, door.admin)].append(door.reservation)
    doors: list[Door] = []
    try:
        for listener, admin in wanted:
            old = kept[_key(listener.address, admin)]
            ours = (door.reservation for door in (*before, *doors))
            doors.append(
                Door(
                    listen=listener.address,
                    reservation=old.pop(0) if old else reserve(listener.address, beside=ours if before else ()),
                    certificate=certificates[listener.tls] if listener.tls else None,
                    admin=admin,
                )
            )
    except BaseException:
        close_doors(doors, keep=before)
        raise
    return tuple(doors)


def close_doors(doors: Iterable[Door], *, keep: Iterable[Door] = ()) -> None:
    """Let go of the addresses, but for those that others have too."""
    kept = {door.reservation for door in keep}
    for reservation in reservations(doors) - kept:
        reservation.close()


def reservations(doors: Iterable[Door]) -> set[Reservation]:
    return {door.reservation for door in doors}


def certificates(doors: Iterable[Door]) -> list[Certificate]:
    """Return each certificate once."""
    return list({id(door.certificate): door.certificate for door in doors if door.certificate}.values())


def _key(address: ListenAddress, admin: bool) -> object:
    """Return what makes two listeners the same: where any port does, it is for the same people."""
    return address if address.port else (address, admin)


def show_certificates(metrics: Metrics, doors: Sequence[Door]) -> None:
    """Have a worker show when the certificates at its doors expire."""
    metrics.reading(
        "mirror_certificate_expiry_timestamp_seconds",
        "When a certificate that is shown to clients ends, in Unix seconds.",
        ("certificate",),
        lambda: [
            ((door.reservation.name,), door.certificate.expires)
            for door in doors
            if door.certificate and door.certificate.expires is not None
        ],
    )
