"""The case of ``?ns=``, by which a client says which registry it means."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, case
from mirror.conformance.stage import Stage

UNKNOWN = "no-such-registry.invalid"


@case("ns-header", Category.PULL, "Registry Proxying", "end-3", should="main")
async def ns_header(stage: Stage) -> None:
    """A registry that uses ?ns= answers with its value as OCI-Namespace; one that ignores it need not."""
    target = (await stage.manifests())[0]
    answer = await stage.get("manifests", target.digest, query={"ns": stage.ns})
    other = await stage.get("manifests", target.digest, query={"ns": UNKNOWN})
    used = answer.status != 200 or other.status != 200
    for one, value in ((answer, stage.ns), (other, UNKNOWN)):
        found = one.headers.get("OCI-Namespace")
        if found is not None and found != value:
            raise expect.failed(one, f"OCI-Namespace: {value}", repr(found))
        if found is None and used and one.status == 200:
            raise expect.failed(one, f"OCI-Namespace: {value}, as ns decides what is answered", "none")
    if not used and answer.headers.get("OCI-Namespace") is None:
        stage.note("ns is ignored")
    if answer.status != 200:
        stage.note(f"{stage.ns} is not a name of this registry: it answers {answer.status}")
