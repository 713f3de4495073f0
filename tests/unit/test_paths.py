"""Paths, parsed once into a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.paths import (
    BlobPath,
    DiscoverPath,
    HistoryPath,
    ManifestPath,
    OperationPath,
    Path,
    ReferrersPath,
    RegistryPath,
    Root,
    SessionPath,
    TagsPath,
    UploadsPath,
    parse_path,
)
from mirror.oci.errors import NameInvalid, PathUnknown

D = "sha256:" + "a" * 64

PATHS: list[tuple[str, Path]] = [
    ("/v2", Root(None)),
    ("/v2/", Root(None)),
    ("/docker.io/v2/", Root("docker.io")),
    ("/v2/a/manifests/latest", ManifestPath(None, "a", "latest")),
    (f"/v2/a/b/manifests/{D}", ManifestPath(None, "a/b", D)),
    (f"/v2/a/b/blobs/{D}", BlobPath(None, "a/b", D)),
    ("/v2/a/tags/list", TagsPath(None, "a")),
    ("/v2/docker.io/library/x/manifests/1", ManifestPath(None, "docker.io/library/x", "1")),
    ("/docker.io/v2/library/x/manifests/1", ManifestPath("docker.io", "library/x", "1")),
    ("/hub/v2/v2/manifests/1", ManifestPath("hub", "v2", "1")),
    ("/v2/v2/v2/manifests/1", ManifestPath(None, "v2/v2", "1")),
    # names made of the API's own words
    ("/v2/tags/list/tags/list", TagsPath(None, "tags/list")),
    ("/v2/manifests/manifests/manifests", ManifestPath(None, "manifests", "manifests")),
    ("/v2/a/manifests/tags/list", TagsPath(None, "a/manifests")),
    (f"/v2/blobs/blobs/{D}", BlobPath(None, "blobs", D)),
    ("/v2/a/blobs/uploads/manifests/x", ManifestPath(None, "a/blobs/uploads", "x")),
    ("/v2/a/blobs/uploads/tags/list", TagsPath(None, "a/blobs/uploads")),
    ("/v2/uploads/blobs/x", BlobPath(None, "uploads", "x")),
    ("/v2/a/blobs/uploads/", UploadsPath(None, "a")),
    ("/v2/a/blobs/uploads", UploadsPath(None, "a")),
    ("/v2/a/b/blobs/uploads/1-2-3", SessionPath(None, "a/b", "1-2-3")),
    ("/v2/a/blobs/uploads/%2e%2e", SessionPath(None, "a", "..")),
    ("/v2/a/blobs/uploads/x%2Fy", SessionPath(None, "a", "x/y")),
    ("/x/v2/a/blobs/uploads/", UploadsPath("x", "a")),
    ("/x/v2/a/blobs/uploads/s", SessionPath("x", "a", "s")),
    ("/v2/blobs/uploads/blobs/uploads/", UploadsPath(None, "blobs/uploads")),
    ("/v2/blobs/uploads", UploadsPath(None, "")),
    (f"/v2/a/b/referrers/{D}", ReferrersPath(None, "a/b", D)),
    ("/v2/referrers/referrers/x", ReferrersPath(None, "referrers", "x")),
    (f"/x/v2/a/referrers/{D}", ReferrersPath("x", "a", D)),
    ("/v2/a/manifests/referrers/x", ReferrersPath(None, "a/manifests", "x")),
    # the registry as a whole, and extensions
    ("/v2/_catalog", RegistryPath(None, "catalog")),
    ("/x/v2/_catalog", RegistryPath("x", "catalog")),
    ("/v2/_oci/ext/discover", RegistryPath(None, "discover")),
    ("/v2/_mirror/openapi/openapi.json", RegistryPath(None, "openapi")),
    ("/v2/_mirror/auth/token", RegistryPath(None, "token")),
    ("/v2/a/_oci/ext/discover", DiscoverPath(None, "a")),
    ("/x/v2/a/b/_oci/ext/discover", DiscoverPath("x", "a/b")),
    ("/v2/a/b/_mirror/tags/history", HistoryPath(None, "a/b")),
    ("/x/v2/a/_mirror/tags/history", HistoryPath("x", "a")),
    ("/v2/_mirror/tags/history", HistoryPath(None, "")),
    ("/v2/_catalog/tags/list", TagsPath(None, "_catalog")),
    ("/v2/_oci/ext/discover/tags/list", TagsPath(None, "_oci/ext/discover")),
    # encoded
    (f"/v2/a/blobs/{D.replace(':', '%3A')}", BlobPath(None, "a", D)),
    (f"/v2/a/blobs/{D.replace(':', '%3a')}", BlobPath(None, "a", D)),
    ("/v2/%61/manifests/latest", ManifestPath(None, "a", "latest")),
    ("/v2/a/%6danifests/latest", ManifestPath(None, "a", "latest")),
    ("/127.0.0.1%3A5000/v2/a/manifests/1", ManifestPath("127.0.0.1:5000", "a", "1")),
    ("/v2/a/manifests/%2e%2e", ManifestPath(None, "a", "..")),
    ("/v2/%ff/manifests/x", ManifestPath(None, "\ufffd", "x")),
    # what is no name is told by the grammar of names, later
    ("/v2/a//b/manifests/x", ManifestPath(None, "a//b", "x")),
    ("/v2/../manifests/x", ManifestPath(None, "..", "x")),
    ("/v2//manifests/x", ManifestPath(None, "", "x")),
    ("/v2/manifests/x", ManifestPath(None, "", "x")),
    ("/v2/a/manifests/", ManifestPath(None, "a", "")),
    ("/v2/a/blobs/", BlobPath(None, "a", "")),
    ("/healthz", OperationPath("healthz")),
    ("/readyz", OperationPath("readyz")),
    ("/metrics", OperationPath("metrics")),
]
UNKNOWN = [
    "",
    "/",
    "*",
    "//",
    "/favicon.ico",
    "/v1/",
    "/V2/",
    "//v2/",
    "/v2/a",
    "/v2/a/b/c",
    "/v2/_catalog/",
    "/v2/a/_catalog",
    "/v2/_oci/ext",
    "/v2/_oci/ext/discover/",
    "/v2/_mirror",
    "/v2/_mirror/auth/tokens",
    "/v2/a/_mirror/tags/histories",
    "/v2/a/_mirror/auth/token",
    "/v2/a/blobs/uploads/s/",
    "/v2/a/blobs/uploads/s/t",
    "/v2/a/tags",
    "/v2/a/tags/list/",
    "/v2/a/manifests",
    "/v2/a/manifests/x/",
    "/v2/a/referrers",
    f"/v2/a/referrers/{D}/",
    "/healthz/",
    "/metrics/x",
    "/a/b/v2/c/manifests/x",
    "/uploads/",
    "/v2/uploads/x",
    "127.0.0.1:80",
]


@pytest.mark.parametrize(("raw", "wanted"), PATHS)
def test_paths(raw: str, wanted: Path) -> None:
    assert parse_path(raw) == wanted


@pytest.mark.parametrize("raw", UNKNOWN)
def test_unknown(raw: str) -> None:
    with pytest.raises(PathUnknown) as caught:
        parse_path(raw)
    assert (caught.value.status, caught.value.code) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    "raw",
    [
        "/v2/a%2Fb/manifests/x",
        "/v2/a%2fb/blobs/x",
        "/v2/a/b%2F../tags/list",
        "/v2/a%2Fb/blobs/uploads/",
        "/v2/a%2Fb/blobs/uploads/s",
        "/v2/a%2Fb/referrers/x",
        "/v2/a%2Fb/_mirror/tags/history",
        "/v2/a%2Fb/_oci/ext/discover",
    ],
)
def test_an_encoded_slash_separates_nothing(raw: str) -> None:
    with pytest.raises(NameInvalid):
        parse_path(raw)


@given(st.text(alphabet="v2/ablobsmanifeststagslistuploadsreferrers_catalog_oci_mirror%2F.:", max_size=60))
def test_anything_is_a_path_or_an_error(raw: str) -> None:
    for text in (raw, f"/{raw}", f"/v2/{raw}"):
        try:
            parse_path(text)
        except (PathUnknown, NameInvalid):
            continue
