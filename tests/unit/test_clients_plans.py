"""The files of each client, held against what the client makes of them; and what is refused and warned of."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml

from mirror.clients import PLANS, CannotDo, Plan, Registry, Setup, mirrored, named, parse_place
from mirror.clients.plan import MARK
from mirror.config import Config
from mirror.upstream.configured import UnknownUpstream

PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
UPSTREAMS = {
    "docker.io": {
        "url": "https://registry-1.docker.io",
        "names": ["index.docker.io", "registry-1.docker.io", "hub.corp"],
    },
    "ghcr.io": {"url": "https://ghcr.io"},
    "plain.corp": {"url": "http://plain.corp:8080"},
    "near.corp": {"url": "http://127.0.0.1:5001"},
    "ported.corp:5000": {"url": "https://ported.corp:5000"},
    "aliased.corp:5000": {"url": "https://aliased.corp:5000", "names": ["aliased.corp"]},
    "*.pkg.dev": {"url": "https://{host}"},
}
EVERY = Config.model_validate({"upstreams": UPSTREAMS})


def planned(client: str, url: str = "http://mirror.corp:5000", *, only: tuple[str, ...] = (), **more: Any) -> Plan:
    registries, patterns = mirrored(EVERY.upstreams, only)
    setup = Setup(place=parse_place(url), registries=registries, patterns=patterns, everything=not only, **more)
    return PLANS[client](setup)


def texts(plan: Plan) -> dict[str, str]:
    found = {file.path: file.text for file in plan.files}
    assert len(found) == len(plan.files)
    return found


# ---- which registries ----


def test_registries_are_the_upstreams_by_each_name_images_have() -> None:
    registries, patterns = mirrored(EVERY.upstreams, ())
    assert registries == (
        Registry(name="docker.io", part="docker.io", server="https://registry-1.docker.io"),
        Registry(name="hub.corp", part="hub.corp", server=""),
        Registry(name="ghcr.io", part="ghcr.io", server="https://ghcr.io"),
        Registry(name="plain.corp", part="plain.corp", server="http://plain.corp:8080"),
        Registry(name="near.corp", part="near.corp", server=""),  # the mirror's way there is not the node's
        Registry(name="ported.corp:5000", part=None, server="https://ported.corp:5000"),
        Registry(name="aliased.corp:5000", part="aliased.corp", server="https://aliased.corp:5000"),
        Registry(name="aliased.corp", part="aliased.corp", server=""),
    )
    assert patterns == ("*.pkg.dev",)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (("ghcr.io",), ["ghcr.io"]),
        (("GHCR.io", "ghcr.io"), ["ghcr.io"]),
        (("hub.corp",), ["docker.io", "hub.corp"]),
        (("us-docker.pkg.dev",), ["us-docker.pkg.dev"]),
        (("*.pkg.dev",), []),
    ],
    ids=str,
)
def test_some_of_them(only: tuple[str, ...], names: list[str]) -> None:
    registries, patterns = mirrored(EVERY.upstreams, only)
    assert [one.name for one in registries] == names
    assert patterns == ()


def test_a_name_of_a_pattern_is_a_registry_of_its_own() -> None:
    registries, _ = mirrored(EVERY.upstreams, ("us-docker.pkg.dev",))
    assert registries[0].server == "https://us-docker.pkg.dev"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ghrc.io", 'did you mean "ghcr.io"'),
        ("a.b.pkg.dev", "no upstream is called"),
        ("pkg.dev", "no upstream is called"),
        ("x.pkg.dev:5000", "no upstream is called"),
        ("*.other.dev", "no upstream is called"),
        ("quay.io", "no upstream is called"),
    ],
)
def test_a_name_that_is_none_of_them(name: str, said: str) -> None:
    with pytest.raises(UnknownUpstream, match=said):
        mirrored(EVERY.upstreams, (name,))


def test_docker_hub_is_the_default_by_any_of_its_names() -> None:
    hub = Config.model_validate({"upstreams": {"hub": {"url": "https://h.corp", "names": ["index.docker.io"]}}})
    assert named(hub.upstreams, "hub") == "docker.io"
    assert named(EVERY.upstreams, "ghcr.io") == "ghcr.io"
    assert named(EVERY.upstreams, None) is None


@pytest.mark.parametrize("client", PLANS)
def test_every_file_says_whose_it_is_and_steps_are_given(client: str) -> None:
    plan = planned(client, "https://mirror.corp", ca=PEM)
    assert all(file.text.startswith(MARK) and client in file.text for file in plan.files if file.form == "ours")
    assert all(file.path.startswith("/etc/") and file.text.endswith("\n") for file in plan.files)
    assert plan.steps


# ---- containerd ----

CERTS = "/etc/containerd/certs.d"


def hosts(plan: Plan) -> dict[str, Any]:
    """Return hosts.toml by the name of its folder."""
    return {
        path.removeprefix(f"{CERTS}/").removesuffix("/hosts.toml"): tomllib.loads(text)
        for path, text in texts(plan).items()
        if path.endswith("/hosts.toml")
    }


def test_containerd_with_fallback() -> None:
    found = hosts(planned("containerd"))
    mirror = {"host": {"http://mirror.corp:5000": {"capabilities": ["pull", "resolve"]}}}
    assert found == {
        "docker.io": {"server": "https://registry-1.docker.io", **mirror},
        "hub.corp": mirror,
        "ghcr.io": {"server": "https://ghcr.io", **mirror},
        "plain.corp": {"server": "http://plain.corp:8080", **mirror},
        "near.corp": mirror,
        "ported.corp:5000": {"server": "https://ported.corp:5000", **mirror},
        "aliased.corp:5000": {"server": "https://aliased.corp:5000", **mirror},
        "aliased.corp": mirror,
        "_default": mirror,
        "mirror.corp:5000": {"server": "http://mirror.corp:5000", "host": {}},
    }


def test_containerd_without_fallback_has_no_server_but_the_mirror() -> None:
    found = hosts(planned("containerd", fallback=False))
    assert {folder: one["server"] for folder, one in found.items()} == dict.fromkeys(found, "http://mirror.corp:5000")
    # a file without this table is ignored by containerd 1.x, which then asks the registry
    assert all(one["host"] == {} for one in found.values())
    assert found["_default"]["capabilities"] == ["pull", "resolve"]
    assert "cannot be pulled" in planned("containerd", fallback=False).warnings[0]


def test_containerd_trusts_a_file_beside() -> None:
    plan = planned("containerd", "https://mirror.corp", ca=PEM, fallback=False, only=("ghcr.io",))
    assert hosts(plan)["ghcr.io"]["ca"] == "../mirror-ca.crt"
    assert hosts(plan)["mirror.corp"]["ca"] == "../mirror-ca.crt"
    assert texts(plan)[f"{CERTS}/mirror-ca.crt"].endswith(PEM)
    assert set(hosts(plan)) == {"ghcr.io", "mirror.corp"}
    assert (
        hosts(planned("containerd", "https://mirror.corp", ca=PEM))["ghcr.io"]["host"]["https://mirror.corp"]["ca"]
        == "../mirror-ca.crt"
    )


@pytest.mark.parametrize(
    ("url", "key", "overridden"),
    [("https://h.corp/hub", "https://h.corp/hub", False), ("https://h.corp/v2/hub", "https://h.corp/v2/hub", True)],
)
def test_containerd_and_paths(url: str, key: str, overridden: bool) -> None:
    table = hosts(planned("containerd", url))["ghcr.io"]["host"][key]
    assert table.get("override_path", False) is overridden


def test_containerd_says_which_line_of_its_configuration_is_needed() -> None:
    steps = "\n".join(planned("containerd").steps)
    assert 'plugins."io.containerd.grpc.v1.cri".registry' in steps
    assert 'plugins."io.containerd.cri.v1.images".registry' in steps
    assert f'config_path = "{CERTS}"' in steps


# ---- docker ----


def test_docker() -> None:
    plan = planned("docker")
    assert json.loads(texts(plan)["/etc/docker/daemon.json"]) == {
        "registry-mirrors": ["http://mirror.corp:5000"],
        "insecure-registries": ["mirror.corp:5000"],
    }
    assert [file.form for file in plan.files] == ["json"]
    assert "docker pull mirror.corp:5000/hub.corp/OWNER/IMAGE" in plan.steps[1]


def test_docker_over_https() -> None:
    found = texts(planned("docker", "https://mirror", ca=PEM))
    assert json.loads(found.pop("/etc/docker/daemon.json")) == {"registry-mirrors": ["https://mirror"]}
    assert set(found) == {"/etc/docker/certs.d/mirror/ca.crt", "/etc/docker/certs.d/mirror:443/ca.crt"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fallback": False}, "always goes on"),
        ({"only": ("ghcr.io",)}, "docker.io alone"),
        ({"default": "ghcr.io"}, "default_upstream: docker.io"),
        ({"default": None}, "default_upstream: docker.io"),
        ({"url": "https://h.corp/hub"}, "no path"),
        ({"url": "https://h.corp/v2/hub"}, "no path"),
    ],
    ids=str,
)
def test_what_docker_cannot_do(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotDo, match=said):
        planned("docker", **settings)


# ---- podman, CRI-O ----


def tables(plan: Plan) -> dict[str, dict[str, Any]]:
    text = texts(plan)["/etc/containers/registries.conf.d/50-mirror.conf"]
    return {one.get("prefix", one["location"]): one for one in tomllib.loads(text)["registry"]}


@pytest.mark.parametrize("client", ["podman", "cri-o"])
def test_podman_with_fallback(client: str) -> None:
    found = tables(planned(client))

    def table(name: str, location: str, **more: bool) -> dict[str, Any]:
        mirror = {"location": f"mirror.corp:5000/{name}", "insecure": True}
        return {"prefix": name, "location": location, **more, "mirror": [mirror]}

    aliased = table("aliased.corp", "aliased.corp:5000") | {"prefix": "aliased.corp:5000"}
    assert found == {
        "docker.io": table("docker.io", "docker.io"),
        "hub.corp": table("hub.corp", "hub.corp"),
        "ghcr.io": table("ghcr.io", "ghcr.io"),
        "plain.corp": table("plain.corp", "plain.corp:8080", insecure=True),
        "near.corp": table("near.corp", "near.corp"),
        "aliased.corp:5000": aliased,
        "aliased.corp": table("aliased.corp", "aliased.corp"),
        "mirror.corp:5000": {"location": "mirror.corp:5000", "insecure": True},
    }


def test_podman_without_fallback_has_the_mirror_in_place_of_the_registry() -> None:
    found = tables(planned("podman", "https://mirror.corp", fallback=False))
    assert found["docker.io"] == {"prefix": "docker.io", "location": "mirror.corp/docker.io"}
    assert not any("mirror" in table for table in found.values())
    assert not any("insecure" in table for table in found.values())


def test_podman_trusts_and_says_paths_behind_v2() -> None:
    plan = planned("podman", "https://mirror/v2/hub", ca=PEM, only=("ghcr.io",))
    assert tables(plan)["ghcr.io"]["mirror"] == [{"location": "mirror:443/hub/ghcr.io"}]
    assert texts(plan)["/etc/containers/certs.d/mirror:443/ca.crt"].endswith(PEM)


@pytest.mark.parametrize("client", ["podman", "cri-o", "buildkit"])
def test_a_path_before_v2_cannot_be_said_in_image_names(client: str) -> None:
    with pytest.raises(CannotDo, match=r"https://h\.corp/v2/hub"):
        planned(client, "https://h.corp/hub")


def test_podman_says_what_it_does_not_cover() -> None:
    warnings = planned("podman").warnings
    assert any("*.pkg.dev" in line and "--upstream" in line for line in warnings)
    assert any(line.startswith("ported.corp:5000 is left out") for line in warnings)
    assert planned("podman", only=("ghcr.io",)).warnings == ()


# ---- BuildKit ----


def test_buildkit() -> None:
    plan = planned("buildkit")
    found = tomllib.loads(texts(plan)["/etc/buildkit/buildkitd.toml"])["registry"]
    assert found.pop("mirror.corp:5000") == {"http": True}
    assert {name: one["mirrors"] for name, one in found.items()} == {
        "docker.io": ["mirror.corp:5000/docker.io"],
        "hub.corp": ["mirror.corp:5000/hub.corp"],
        "ghcr.io": ["mirror.corp:5000/ghcr.io"],
        "plain.corp": ["mirror.corp:5000/plain.corp"],
        "near.corp": ["mirror.corp:5000/near.corp"],
        "ported.corp:5000": ["mirror.corp:5000/ported.corp:5000"],
        "aliased.corp:5000": ["mirror.corp:5000/aliased.corp"],
        "aliased.corp": ["mirror.corp:5000/aliased.corp"],
    }
    assert any("*.pkg.dev" in line for line in plan.warnings)


def test_buildkit_over_https() -> None:
    found = texts(planned("buildkit", "https://mirror/v2/hub", ca=PEM, only=("ghcr.io",)))
    assert tomllib.loads(found["/etc/buildkit/buildkitd.toml"])["registry"] == {
        "ghcr.io": {"mirrors": ["mirror:443/hub/ghcr.io"]},
        "mirror:443": {"ca": ["/etc/buildkit/mirror-ca.crt"]},
    }
    assert found["/etc/buildkit/mirror-ca.crt"].endswith(PEM)


def test_buildkit_always_goes_on() -> None:
    with pytest.raises(CannotDo, match="always goes on"):
        planned("buildkit", fallback=False)


# ---- k3s ----


def registries_yaml(plan: Plan) -> Any:
    return yaml.safe_load(texts(plan)["/etc/rancher/k3s/registries.yaml"])


def test_k3s() -> None:
    plan = planned("k3s")
    names = [*UPSTREAMS, "hub.corp", "aliased.corp", "*", "mirror.corp:5000"]
    names.remove("*.pkg.dev")  # "*" has them
    endpoint = {"endpoint": ["http://mirror.corp:5000"]}
    assert registries_yaml(plan) == {"mirrors": dict.fromkeys(names, endpoint)}
    assert len(plan.files) == 1


def test_k3s_without_fallback_is_a_setting_of_k3s_itself() -> None:
    plan = planned("k3s", fallback=False, only=("ghcr.io",))
    assert yaml.safe_load(texts(plan)["/etc/rancher/k3s/config.yaml.d/50-mirror.yaml"]) == {
        "disable-default-registry-endpoint": True
    }
    assert set(registries_yaml(plan)["mirrors"]) == {"ghcr.io", "mirror.corp:5000"}
    assert any("1.29.1" in line for line in plan.warnings)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [("https://mirror/hub", "https://mirror/hub/v2"), ("https://mirror/v2/hub", "https://mirror/v2/hub")],
)
def test_k3s_takes_a_path_as_the_root_of_the_api(url: str, endpoint: str) -> None:
    found = registries_yaml(planned("k3s", url, ca=PEM, only=("ghcr.io",)))
    ca = {"tls": {"ca_file": "/etc/rancher/k3s/mirror-ca.crt"}}
    assert found == {"mirrors": {"ghcr.io": {"endpoint": [endpoint]}}, "configs": {"mirror": ca, "mirror:443": ca}}


# ---- logins ----


@pytest.mark.parametrize("client", PLANS)
def test_a_mirror_that_wants_a_login_is_warned_of(client: str) -> None:
    def said(*, logins: bool) -> bool:
        return any("login" in line for line in planned(client, only=("docker.io",), logins=logins).warnings)

    assert said(logins=True)
    assert not said(logins=False)
