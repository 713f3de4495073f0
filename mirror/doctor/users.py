"""Who may log in: the file of users, and that those with rights are in it."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.access.advice import strangers
from mirror.access.users import read_users
from mirror.config.problems import did_you_mean
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.threads import in_thread

NAME = "users"


async def look(case: Case) -> Sequence[Finding]:
    """Judge ``access``."""
    access = case.config.access
    if access.htpasswd_file is None:
        who = "anybody pulls, and who reaches a loopback address pushes"
        if access.insecure_writes:
            who = "anybody pulls and pushes (access.insecure_writes)"
        return [ok(NAME, f"none: {who}", count=0)]
    file = str(access.htpasswd_file)
    found = await in_thread(read_users, access.htpasswd_file)
    assert found is not None  # nothing was known of it
    if found.failure:
        return [
            problem(
                NAME,
                f"access.htpasswd_file: {file} {found.failure}: nobody can log in",
                f"make its lines with htpasswd -B: htpasswd -B {file} NAME",
                file=file,
            )
        ]
    lines: list[Finding] = [
        warning(NAME, f"access.htpasswd_file: {file}, {complaint}", f"correct it: htpasswd -B {file} NAME")
        for complaint in sorted(found.complaints)
    ]
    if not found.users:
        lines.append(warning(NAME, f"access.htpasswd_file: {file} has no users", f"add one: htpasswd -B {file} NAME"))
    for setting, name in strangers(access, found.users):
        meant = did_you_mean(name, found.users)
        lines.append(
            problem(
                NAME,
                f"{setting}: {name!r} is not in {file}{f'; {meant}' if meant else ''}",
                f"add the user: htpasswd -B {file} {name}; or take the name out of {setting}",
            )
        )
    return lines or [ok(NAME, f"{len(found.users)} in {file}", count=len(found.users), file=file)]
