"""What upstreams are configured with, as far as it can be judged without asking anybody: files, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cryptography import x509
from yarl import URL

from mirror import config
from mirror.doctor.case import Case
from mirror.doctor.certificates import judge_time
from mirror.doctor.finding import Finding, Outcome, ok, problem, warning
from mirror.doctor.threads import in_thread
from mirror.upstream.chain import as_upstream
from mirror.upstream.credentials import unusable_file
from mirror.upstream.tls import UnusableFile, load_contexts

NAME = "upstream settings"


async def look(case: Case) -> Sequence[Finding]:
    """Judge the files of every upstream and of its mirrors, patterns as well."""
    found: list[Finding] = []
    for name, settings in case.config.upstreams.items():
        for who, place, one in hosts(name, settings):
            found += await in_thread(lambda each=(who, place, one): [*_files(*each), *_logins(*each)])
    return found or [ok(NAME, "their files are there and can be used", upstreams=len(case.config.upstreams))]


def hosts(name: str, settings: config.Upstream) -> Iterator[tuple[str, str, config.Upstream]]:
    """Give an upstream and its mirrors: what to call each, where it is configured, and its settings."""
    place = f'upstreams."{name}"' if "*" in name else f"upstreams.{name}"
    yield name, place, settings
    for at, mirror in enumerate(settings.mirrors):
        url = URL(mirror.url)
        who = f"the mirror {url.host_port_subcomponent} of {name}"
        yield who, f"{place}.mirrors[{at}]", as_upstream(settings, mirror, settings.timeouts)


def _files(who: str, place: str, settings: config.Upstream) -> Iterator[Finding]:
    try:
        load_contexts(settings, URL(settings.url.replace("{host}", "host.invalid")))
    except UnusableFile as error:
        yield problem(NAME, f"{who}: {error}", f"correct {place}.{error.setting}")
        return
    now = datetime.now(UTC)
    files = [("ca_file", settings.ca_file)]
    if settings.client_certificate is not None:
        files.append(("client_certificate", settings.client_certificate.certificate))
    for setting, path in files:
        try:
            certificates = x509.load_pem_x509_certificates(path.read_bytes()) if path is not None else []
        except (OSError, ValueError):
            continue  # a form that OpenSSL takes and this library does not: it was loaded above
        for certificate in certificates:
            judged = judge_time(certificate, f"{who}: {setting} {path}", now)
            if judged.outcome is not Outcome.OK:
                # An authority of many that is out of date is no reason for alarm.
                kind = problem if judged.outcome is Outcome.PROBLEM and setting != "ca_file" else warning
                yield kind(NAME, judged.text, f"{judged.advice}: {place}.{setting}", **judged.facts)


def _logins(who: str, place: str, settings: config.Upstream) -> Iterator[Finding]:
    """Read the logins that are in files; helpers are programs that may ask others."""
    for credentials in settings.credentials:
        if found := unusable_file(credentials, URL(settings.url.replace("{host}", "host.invalid"))):
            setting, why = found
            yield problem(NAME, f"{who}: its {setting} cannot be used: {why}", f"correct {place}.credentials.{setting}")
