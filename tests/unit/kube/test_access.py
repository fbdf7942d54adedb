"""How a cluster is found: kubeconfigs, pods, plugins, certificates; and merging what several watches tell."""

import asyncio
import base64
import json
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.errors import Unavailable, Unsupported
from shared.kube import Added, Cluster, Deleted, Identity, KubernetesSettings, Mirror, Modified, Synced, Told, merged
from shared.kube import kubeconfig as kubeconfigs
from shared.kube.credentials import ExecSpec, Plugin, TokenFile
from shared.kube.errors import CredentialsRefused
from shared.kube.kubeconfig import Access, find_access
from shared.kube.objects import Partial
from shared.kube.resources import NODES
from shared.settings import load
from tests.support.kube_server import KubeServer

CA = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


def write(path: Path, *, user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "main",
        "clusters": [{"name": "c", "cluster": {"server": "https://k8s.example:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [
            {"name": "main", "context": {"cluster": "c", "user": "u", "namespace": "ml"}},
            {"name": "bare", "context": {"cluster": "c"}},
            {"name": "broken", "context": {"cluster": "nowhere"}},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def found(path: Path, *, context: str = "", namespace: str = "") -> Access:
    settings = KubernetesSettings(kubeconfig=str(path), kubernetes_context=context, kubernetes_namespace=namespace)
    return find_access(settings, {})


async def test_a_kubeconfig_with_inlined_certificates(tmp_path: Path) -> None:
    data = base64.b64encode(CA.encode()).decode()
    user = {"client-certificate-data": data, "client-key-data": data}
    access = found(write(tmp_path / "config", user=user, cluster={"certificate-authority-data": data}))
    assert access.server == "https://k8s.example:6443"
    assert access.namespace == "ml"
    assert access.authorities == CA
    grant = await access.credential.grant()
    assert (grant.certificate, grant.key) == (CA, CA)
    assert "BEGIN" not in repr(grant)


async def test_paths_in_a_kubeconfig_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CA)
    (tmp_path / "token").write_text("secret\n")
    path = write(tmp_path / "config", user={"tokenFile": "token"}, cluster={"certificate-authority": "ca.pem"})
    access = found(path)
    assert access.authorities == CA
    assert (await access.credential.grant()).authorization == "Bearer secret"


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({"token": "t"}, "Bearer t"),
        ({"username": "u", "password": "p"}, "Basic dTpw"),
        ({}, ""),
    ],
)
async def test_ways_to_say_who_we_are(tmp_path: Path, user: dict[str, Any], header: str) -> None:
    access = found(write(tmp_path / "config", user=user))
    assert (await access.credential.grant()).authorization == header


def test_contexts_namespaces_and_impersonation(tmp_path: Path) -> None:
    path = write(tmp_path / "config", user={"as": "robot", "as-groups": ["ops"]})
    assert found(path).headers == {"Impersonate-User": "robot", "Impersonate-Group": "ops"}
    assert found(path, context="bare").namespace == "default"
    assert found(path, namespace="mine").namespace == "mine"


def test_several_kubeconfigs_are_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", write(tmp_path / "two")
    one.write_text("current-context: bare\n")
    access = find_access(KubernetesSettings(), {"KUBECONFIG": f"{one}:{tmp_path / 'none'}:{two}"})
    assert (access.server, access.namespace) == ("https://k8s.example:6443", "default")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "can't be read: .* elearn needs it"),
        ("{", "is not a kubeconfig"),
        ("clusters: 3", "is not a kubeconfig"),
        ("", "no current context"),
        ("current-context: x", "there is no context 'x'; it has: none"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]",
            "context 'x' names cluster 'c', which is not there",
        ),
    ],
)
def test_a_kubeconfig_that_is_none_is_told_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Unavailable, match=words) as caught:
        found(path)
    assert "\n" not in caught.value.detail
    assert str(path) in caught.value.detail


def test_what_kubernetes_gave_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"auth-provider oidc.*exec plugin"):
        found(write(tmp_path / "config", user={"auth-provider": {"name": "oidc"}}))


def test_no_cluster_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="set ELEARN_KUBECONFIG"):
        find_access(KubernetesSettings(), {})


@pytest.mark.parametrize(
    ("environ", "cluster", "proxy"),
    [
        ({}, {}, ""),
        ({"HTTPS_PROXY": "http://p:3128"}, {}, "http://p:3128"),
        ({"https_proxy": "http://me:pass@p:3128"}, {}, "http://me:pass@p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, {}, ""),
        ({"HTTP_PROXY": "http://p:3128"}, {"server": "http://k8s.example:8001"}, "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "localhost,.example"}, {}, ""),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "k8s.example:6443"}, {}, ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "other.example"}, {}, "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, {"server": "https://localhost:6443"}, ""),
        ({"HTTPS_PROXY": "http://p:3128"}, {"server": "https://[::1]:6443"}, ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "10.0.0.0/8"}, {"server": "https://10.96.0.1:443"}, ""),
        (
            {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "x/y, 10.0.0.0/8"},
            {"server": "https://11.0.0.1"},
            "http://p:3128",
        ),
        ({"HTTPS_PROXY": "http://p:3128"}, {"proxy-url": "http://own:8080"}, "http://own:8080"),
    ],
)
def test_a_proxy_comes_from_the_kubeconfig_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], cluster: dict[str, str], proxy: str
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert found(write(tmp_path / "config", cluster=cluster)).proxy == proxy


async def test_requests_go_through_the_proxy_with_its_password(
    monkeypatch: pytest.MonkeyPatch, server: KubeServer, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    config = write(tmp_path / "config", user={"token": "t"}, cluster={"server": "http://k8s.example"})
    async with Cluster(KubernetesSettings(kubeconfig=str(config))) as cluster:
        assert await cluster.list(NODES, Partial, ours=False) == []
    assert server.headers["Proxy-Authorization"] == "Basic bWU6cGFzcw=="
    assert server.headers["Authorization"] == "Bearer t"
    assert server.headers["Host"] == "k8s.example"


async def test_passwords_for_other_tools_are_not_ours(
    monkeypatch: pytest.MonkeyPatch, server: KubeServer, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    config = write(tmp_path / "config", user={"token": "t"}, cluster={"server": f"http://127.0.0.1:{server.port}"})
    async with Cluster(KubernetesSettings(kubeconfig=str(config))) as cluster:
        assert await cluster.list(NODES, Partial, ours=False) == []
    assert server.headers["Authorization"] == "Bearer t"


async def test_in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kubeconfigs, "SERVICE_ACCOUNT", tmp_path)
    for name, text in (("token", "abc"), ("ca.crt", CA), ("namespace", "team")):
        (tmp_path / name).write_text(text)
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = find_access(KubernetesSettings(), environment)
    assert (access.server, access.namespace, access.home) == ("https://[fd00::1]:443", "team", "team")
    assert (await access.credential.grant()).authorization == "Bearer abc"


def test_settings_come_from_the_environment() -> None:
    settings = load(
        KubernetesSettings,
        {"ELEARN_KUBECONFIG": "/x", "ELEARN_KUBERNETES_INSTALLATION": "b", "ELEARN_KUBERNETES_TIMEOUT": "3"},
    )
    assert (settings.kubeconfig, settings.kubernetes_installation, settings.kubernetes_timeout) == ("/x", "b", 3.0)


async def test_a_token_in_a_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    lasting, brief = TokenFile(path), TokenFile(path, seconds=0)
    assert (await lasting.grant()).authorization == (await brief.grant()).authorization == "Bearer one"
    path.write_text("two")
    assert (await lasting.grant()).authorization == "Bearer one"
    assert (await brief.grant()).authorization == "Bearer two"
    path.write_text("")
    with pytest.raises(CredentialsRefused, match="is empty"):
        await brief.grant()
    path.unlink()
    with pytest.raises(CredentialsRefused, match="can't be read"):
        await brief.grant()


# -- plugins ----------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> ExecSpec:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return ExecSpec(command="./plugin", args=("a",), env=({"name": "X", "value": "y"},), provide_cluster_info=True)


def credential(expires: str) -> str:
    return json.dumps({"kind": "ExecCredential", "status": {"token": "t", "expirationTimestamp": expires}})


@pytest.mark.parametrize(("expires", "runs"), [("2999-01-01T00:00:00Z", 1), ("2001-01-01T00:00:00Z", 3)])
async def test_a_plugin_is_run_again_only_when_its_token_ends(tmp_path: Path, expires: str, runs: int) -> None:
    spec = script(
        tmp_path, f"""echo "$1$X" >> log; echo "$KUBERNETES_EXEC_INFO" > info; echo '{credential(expires)}'"""
    )
    plugin = Plugin(spec, {"server": "https://x"}, tmp_path)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(3):
            assert (await plugin.grant()).authorization == "Bearer t"
    finally:
        os.chdir(before)
    assert (tmp_path / "log").read_text() == "ay\n" * runs
    assert json.loads((tmp_path / "info").read_text())["spec"]["cluster"] == {"server": "https://x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo no such profile >&2; exit 3", "ended with 3: no such profile"),
        ("echo nonsense", "plugin ./plugin: "),
        (None, "can't be run: .*try: apt"),
    ],
)
async def test_a_plugin_that_fails_says_why(tmp_path: Path, text: str | None, words: str) -> None:
    spec = script(tmp_path, text) if text else ExecSpec(command="./none", install_hint="try: apt")
    with pytest.raises(CredentialsRefused, match=words):
        await Plugin(spec, {}, tmp_path).grant()


# -- whole connections ------------------------------------------------------------------------------------------------


async def test_a_kubeconfig_that_changes_is_followed(server: KubeServer, tmp_path: Path) -> None:
    server.tokens = {"one"}
    path = tmp_path / "config"
    path.write_text(server.kubeconfig("one"))
    async with Cluster(KubernetesSettings(kubeconfig=str(path))) as cluster:
        assert await cluster.list(NODES, Partial, ours=False) == []
        server.tokens = {"two"}
        path.write_text(server.kubeconfig("two"))
        assert await cluster.list(NODES, Partial, ours=False) == []


async def test_certificates_that_are_none_are_told(tmp_path: Path) -> None:
    data = base64.b64encode(CA.encode()).decode()
    path = write(tmp_path / "config", cluster={"certificate-authority-data": data})
    async with Cluster(KubernetesSettings(kubeconfig=str(path))) as cluster:
        with pytest.raises(Unavailable, match="certificates in the kubeconfig can't be used"):
            await cluster.list(NODES, Partial)


# -- several watches --------------------------------------------------------------------------------------------------


async def telling(
    *told: Told[str], then: Exception | None = None, closed: list[str]
) -> AsyncGenerator[Told[str], None]:
    try:
        for each in told:
            yield each
        if then:
            raise then
        await asyncio.Event().wait()
    finally:
        closed.append("closed")


def added(name: str) -> Added[str]:
    return Added(Identity("ns", name, name), name)


async def test_watches_are_merged_and_synced_once_all_are() -> None:
    closed: list[str] = []
    watches = [
        telling(added("a"), Synced(), added("b"), closed=closed),
        telling(added("c"), added("d"), added("e"), Synced(), closed=closed),
    ]
    heard: list[Told[str]] = []
    async with asyncio.timeout(5), aclosing(merged(watches, waiting=1)) as told:
        async for each in told:
            heard.append(each)
            if len(heard) == 6:
                break
    assert closed == ["closed", "closed"]
    assert heard.count(Synced()) == 1
    assert all(heard.index(added(name)) < heard.index(Synced()) for name in "acde")
    assert heard.index(added("b")) > heard.index(added("a"))


async def test_a_watch_that_breaks_breaks_the_whole() -> None:
    closed: list[str] = []
    watches = [telling(Synced(), closed=closed), telling(then=KeyError("x"), closed=closed)]
    with pytest.raises(KeyError):
        async with asyncio.timeout(5), aclosing(merged(watches)) as told:
            async for _ in told:
                pass
    assert closed == ["closed", "closed"]


def test_a_mirror_shows_what_is_there() -> None:
    mirror: Mirror[str] = Mirror()
    a, b = Identity("ns", "a", "1"), Identity("ns", "a", "2")
    assert (mirror.take(Added(a, "one")), mirror.synced) == (None, False)
    mirror.take(Synced())
    assert mirror.synced
    assert mirror.take(Modified(a, "two")) == "one"
    assert (mirror.get("1"), mirror.named("a", "ns"), list(mirror), len(mirror)) == ("two", "two", ["two"], 1)
    mirror.take(Added(b, "successor"))
    assert mirror.take(Deleted(a, None)) == "two"
    assert mirror.named("a", "ns") == "successor"
    assert mirror.take(Deleted(a, None)) is None
    assert list(mirror) == ["successor"]
