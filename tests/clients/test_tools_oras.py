"""oras: push and pull by its Python package; attach and discover by its program, where there is one."""

from __future__ import annotations

import importlib.util
import json

from tests.clients.conftest import refuse
from tests.clients.images import Images
from tests.clients.layout import write_layout
from tests.clients.registry_process import AUTHOR, WRONG, refused
from tests.clients.toolbox import Toolbox

PUSHED, REPOSITORY, TYPE, NOTE = "local/oras/package", "local/oras/program", "application/vnd.test.note", "a note\n"


def test_the_python_package(toolbox: Toolbox) -> None:
    if importlib.util.find_spec("oras") is None:
        refuse("not installed: the Python package oras, of the extra [clients]")
    registry, note = toolbox.registry, toolbox.file("note.txt", NOTE)
    backend = "basic" if registry.access == "basic" else "token"

    def oras(doing: str, place: object, *login: str) -> str:
        return toolbox.python(
            "tests.clients.oras_package", doing, toolbox.named(PUSHED, "1"), str(place), backend, *login
        )

    login = (AUTHOR.user, AUTHOR.password) if toolbox.logs_in else ()
    if toolbox.logs_in:
        refused(lambda: oras("push", note))
        for wrong in WRONG:
            refused(lambda wrong=wrong: oras("push", note, wrong.user, wrong.password))  # type: ignore[misc]
        assert not registry.tags(PUSHED)
    oras("push", note, *login)
    assert registry.tags(PUSHED) == ["1"]
    _, manifest = registry.manifest(PUSHED, "1")
    assert registry.blob(PUSHED, manifest["layers"][0]["digest"]) == NOTE.encode()

    reader = () if registry.access == "bearer" else login
    if registry.access == "basic":
        refused(lambda: oras("pull", toolbox.folder / "refused"))
    oras("pull", toolbox.folder / "pulled", *reader)
    assert (toolbox.folder / "pulled/note.txt").read_text() == NOTE


def test_the_program(toolbox: Toolbox, images: Images) -> None:
    oras, registry, image = toolbox.tool("oras"), toolbox.registry, images.multi
    layout, note = write_layout(image, toolbox.folder / "multi"), toolbox.file("note.txt", NOTE)
    name = toolbox.named(REPOSITORY, "1")

    def login(*options: str) -> str:
        return oras("login", "--plain-http", toolbox.host, *options, both=True)

    def copy() -> str:
        return oras("copy", "--from-oci-layout", f"{layout}:1", "--to-plain-http", name, both=True)

    if toolbox.logs_in:
        refused(copy)
        for wrong in WRONG:
            refused(lambda wrong=wrong: toolbox.log_in(login, "--username", "--password", as_who=wrong))  # type: ignore[misc]
        toolbox.log_in(login, "--username", "--password")
    copy()
    registry.assert_holds(image, REPOSITORY, "1")
    oras("attach", "--plain-http", "--disable-path-validation", "--artifact-type", TYPE, name, note)
    found = json.loads(oras("discover", "--plain-http", "--format", "json", name))
    (referrer,) = registry.referrers(REPOSITORY, image.digest)
    assert [(one["digest"], one["artifactType"]) for one in found["referrers"]] == [(referrer["digest"], TYPE)]
    assert oras("repo", "tags", "--plain-http", toolbox.named(REPOSITORY)).split() == ["1"]
