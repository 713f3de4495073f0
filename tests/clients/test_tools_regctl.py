"""regctl: image copy with referrers, artifacts with a subject, tags, single blobs."""

from __future__ import annotations

import hashlib

from tests.clients.images import Images
from tests.clients.layout import write_layout
from tests.clients.registry_process import WRONG, refused
from tests.clients.toolbox import Toolbox

REPOSITORY, TYPE, NOTE = "local/regctl", "application/vnd.test.note", "a note on an image\n"


def test_regctl(toolbox: Toolbox, images: Images) -> None:
    regctl, registry, named = toolbox.tool("regctl"), toolbox.registry, toolbox.named
    image, copies = images.multi, f"{REPOSITORY}/copies"
    layout = write_layout(image, toolbox.folder / "multi")
    note = toolbox.file("note.txt", NOTE)
    regctl("registry", "set", "--skip-check", "--tls", "disabled", toolbox.host)
    if toolbox.logs_in:

        def login(*options: str) -> str:
            return regctl("registry", "login", toolbox.host, *options, both=True)

        refused(lambda: regctl("image", "copy", f"ocidir://{layout}:1", named(REPOSITORY, "1"), both=True))
        for wrong in WRONG:
            refused(lambda wrong=wrong: toolbox.log_in(login, "--user", "--pass", as_who=wrong))  # type: ignore[misc]
        assert not registry.tags(REPOSITORY)
        toolbox.log_in(login, "--user", "--pass")

    regctl("image", "copy", f"ocidir://{layout}:1", named(REPOSITORY, "1"))
    registry.assert_holds(image, REPOSITORY, "1")
    assert regctl("image", "digest", named(REPOSITORY, "1")).strip() == image.digest

    assert registry.referrers(REPOSITORY, image.digest) == []
    regctl("artifact", "put", "--subject", named(REPOSITORY, "1"), "--artifact-type", TYPE, "--file", note)
    (referrer,) = registry.referrers(REPOSITORY, image.digest)
    assert referrer["artifactType"] == TYPE
    assert referrer["digest"] in regctl("artifact", "list", named(REPOSITORY, "1"))
    assert regctl("artifact", "get", "--subject", named(REPOSITORY, "1"), "--filter-artifact-type", TYPE) == NOTE
    # the registry answers for referrers: no fallback tag is pushed beside it
    assert regctl("tag", "ls", named(REPOSITORY)).split() == ["1"]

    regctl("image", "copy", named(REPOSITORY, "1"), named(copies, "plain"))
    assert registry.referrers(copies, image.digest) == []
    regctl("image", "copy", "--referrers", named(REPOSITORY, "1"), named(copies, "1"))
    registry.assert_holds(image, copies, "1")
    assert registry.referrers(copies, image.digest) == [referrer]

    digest = toolbox.shell(f"regctl blob put {named(REPOSITORY)} <{note}").strip()
    assert digest == "sha256:" + hashlib.sha256(NOTE.encode()).hexdigest()
    assert registry.blob(REPOSITORY, digest) == NOTE.encode()

    regctl("tag", "rm", named(copies, "1"))
    assert registry.tags(copies) == ["plain"]  # of the same manifest: the tag is gone, nothing else
    registry.assert_holds(image, copies, "plain")
