"""What this service shows and asks for by TLS: usable, in time, and for the names clients use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from mirror.config import Config, Tls
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.threads import in_thread
from mirror.server.certificates import Certificate
from mirror.worker import StartupError

NAME = "tls"
SOON = timedelta(days=14)
"""How long before its end a certificate is warned of."""


async def look(case: Case) -> Sequence[Finding]:
    """Judge every certificate that a listener has."""
    config = case.config
    used = {one.tls: None for one in (*config.listen, *config.admin_listen) if one.tls is not None}
    if not used:
        return [ok(NAME, "no address has it: plain HTTP")]
    now = datetime.now(UTC)
    return await in_thread(lambda: [finding for tls in used for finding in _of(tls, config, now)])


def _of(tls: Tls, config: Config, now: datetime) -> Iterator[Finding]:
    try:
        Certificate(tls)
    except StartupError as error:
        yield problem(NAME, str(error), _remedy(str(error), tls), certificate=str(tls.certificate))
        return
    try:
        found = x509.load_pem_x509_certificates(tls.certificate.read_bytes())
    except (OSError, ValueError) as error:
        yield problem(
            NAME,
            f"{tls.certificate} cannot be read as certificates ({type(error).__name__})",
            "give PEM, the server's own certificate first",
        )
        return
    own, *chain = found
    yield judge_time(own, f"{tls.certificate}", now, names=names_of(own))
    for one in chain:
        late = judge_time(one, f"{tls.certificate}: of its chain, {one.subject.rfc4514_string()}", now)
        if late.advice:
            yield late
    missing = [name for name in config.names if not covers(names_of(own), name)]
    if missing:
        yield warning(
            NAME,
            f"{tls.certificate} is not for {', '.join(missing)}, which names: says clients use",
            "have a certificate made for it, or take the name out of names:",
            missing=missing,
        )
    if tls.client_ca is not None:
        yield from _authorities(tls.client_ca, now)


def _authorities(path: Path, now: datetime) -> Iterator[Finding]:
    """Judge those that sign the certificates of clients."""
    for one in x509.load_pem_x509_certificates(path.read_bytes()):
        late = judge_time(one, f"{path}: {one.subject.rfc4514_string()}", now)
        if late.advice:
            yield late


def judge_time(certificate: x509.Certificate, what: str, now: datetime, **facts: object) -> Finding:
    """Judge whether a certificate is valid now, and for how much longer. what: it, in words."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    facts |= {"not_before": begins.isoformat(), "not_after": ends.isoformat()}
    if ends <= now:
        return problem(NAME, f"{what} expired on {ends:%Y-%m-%d}", "renew it, or set the clock right", **facts)
    if begins > now:
        advice = "set the clock right, or wait until then"
        return problem(NAME, f"{what} is valid from {begins:%Y-%m-%d %H:%M} UTC on only", advice, **facts)
    if ends - now < SOON:
        return warning(NAME, f"{what} expires on {ends:%Y-%m-%d}, in {(ends - now).days} days", "renew it", **facts)
    return ok(NAME, f"{what}, until {ends:%Y-%m-%d}", **facts)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the hosts and addresses a certificate is for, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    hosts = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
    return [*hosts, *(str(address) for address in found.get_values_for_type(x509.IPAddress))]


def covers(names: Sequence[str], wanted: str) -> bool:
    """Say whether one of a certificate's names is that of a ``host[:port]`` (RFC 6125 section 6.4.3)."""
    host = wanted.partition("]")[0].removeprefix("[") if wanted.startswith("[") else wanted.partition(":")[0]
    _, dot, domain = host.partition(".")
    return host in names or (bool(dot) and f"*.{domain}" in names)


def _remedy(said: str, tls: Tls) -> str:
    if "client_ca" in said:
        return "give a PEM file of certificate authorities as tls.client_ca"
    if "cannot read" in said:
        return "give the user of the service the right to read it"
    if "MISMATCH" in said:
        return f"give the key that {tls.certificate.name} was made with as tls.key; both are renewed together"
    return "give both as PEM, the key without a password"
