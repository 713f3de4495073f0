"""helm: a chart is pushed, shown and pulled over plain HTTP."""

from __future__ import annotations

from tests.clients.registry_process import WRONG, refused
from tests.clients.toolbox import Toolbox

CHARTS = "local/charts"


def test_helm(toolbox: Toolbox) -> None:
    helm, registry = toolbox.tool("helm"), toolbox.registry
    toolbox.file("note/Chart.yaml", "apiVersion: v2\nname: note\nversion: 1.2.3+build\n")
    toolbox.file("note/templates/note.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note}\n")
    helm("package", toolbox.folder / "note", "--destination", toolbox.folder)
    package = toolbox.folder / "note-1.2.3+build.tgz"
    repository, chart = f"{CHARTS}/note", f"oci://{toolbox.host}/{CHARTS}/note"

    def push() -> str:
        return helm("push", "--plain-http", package, f"oci://{toolbox.host}/{CHARTS}", both=True)

    def login(*options: str) -> str:
        return helm("registry", "login", "--plain-http", toolbox.host, *options, both=True)

    if toolbox.logs_in:
        refused(push)
        for wrong in WRONG:
            refused(lambda wrong=wrong: toolbox.log_in(login, "--username", "--password", as_who=wrong))  # type: ignore[misc]
        assert not registry.tags(repository)
        toolbox.log_in(login, "--username", "--password")

    push()
    assert registry.tags(repository) == ["1.2.3_build"]  # a tag has no plus
    _, manifest = registry.manifest(repository, "1.2.3_build")
    assert registry.blob(repository, manifest["layers"][0]["digest"]) == package.read_bytes()
    assert "version: 1.2.3+build" in helm("show", "chart", "--plain-http", chart, "--version", "1.2.3+build")
    pulled = toolbox.folder / "pulled"
    pulled.mkdir()
    helm("pull", "--plain-http", chart, "--version", "1.2.3+build", "--destination", pulled)
    assert (pulled / package.name).read_bytes() == package.read_bytes()
