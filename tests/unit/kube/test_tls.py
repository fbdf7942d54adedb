"""Certificates, as real clusters have them: an authority of their own, and a client certificate for each user."""

import base64
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from shared.kube import Cluster, KubernetesSettings, server_version
from shared.kube.errors import Unreachable
from tests.support.kube_server import KubeServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates: not installed")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> None:
    openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt",
    )  # fmt: skip


def certificate(folder: Path, name: str, issuer: str, *, host: str = "") -> None:
    openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.csr",
    )  # fmt: skip
    (folder / "ext").write_text(f"subjectAltName={host}\n" if host else "basicConstraints=CA:FALSE\n")
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key",
        "-CAcreateserial", "-days", "30", "-extfile", "ext", "-out", f"{name}.crt",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority(folder, "kubernetes-ca")
    authority(folder, "other-ca")
    certificate(folder, "server", "kubernetes-ca", host="IP:127.0.0.1,DNS:kubernetes.default")
    certificate(folder, "named", "kubernetes-ca", host="DNS:kubernetes.default")
    certificate(folder, "admin", "kubernetes-ca")
    return folder


def server_context(pki: Path, name: str = "server") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "kubernetes-ca.crt"))
    context.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def settings(
    pki: Path, server: KubeServer, tmp_path: Path, *, ca: str = "kubernetes-ca", **cluster: object
) -> KubernetesSettings:
    def inlined(name: str) -> str:
        return base64.b64encode((pki / name).read_bytes()).decode()

    document = {
        "current-context": "a",
        "clusters": [
            {
                "name": "a",
                "cluster": {
                    "server": f"https://127.0.0.1:{server.port}",
                    "certificate-authority-data": inlined(f"{ca}.crt"),
                    **cluster,
                },
            }
        ],
        "users": [
            {
                "name": "a",
                "user": {"client-certificate-data": inlined("admin.crt"), "client-key": str(pki / "admin.key")},
            }
        ],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return KubernetesSettings(kubeconfig=str(path), kubernetes_patience=0.0)


async def test_both_sides_show_certificates_and_no_key_stays_on_disk(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    async with KubeServer(tls=server_context(pki)) as server, Cluster(settings(pki, server, tmp_path)) as cluster:
        assert await server_version(cluster) == (1, 36)
        assert list(scratch.iterdir()) == []


async def test_a_server_that_is_not_who_it_should_be_is_not_talked_to(pki: Path, tmp_path: Path) -> None:
    async with (
        KubeServer(tls=server_context(pki)) as server,
        Cluster(settings(pki, server, tmp_path, ca="other-ca")) as cluster,
    ):
        with pytest.raises(Unreachable, match="certificate verify failed") as caught:
            await server_version(cluster)
        assert "\n" not in caught.value.detail
        assert server.requests == []


async def test_the_name_in_the_certificate_may_be_another(pki: Path, tmp_path: Path) -> None:
    async with KubeServer(tls=server_context(pki, "named")) as server:
        async with Cluster(settings(pki, server, tmp_path)) as cluster:
            with pytest.raises(Unreachable, match="mismatch"):
                await server_version(cluster)
        how = settings(pki, server, tmp_path, **{"tls-server-name": "kubernetes.default"})
        async with Cluster(how) as cluster:
            assert await server_version(cluster) == (1, 36)
        how = settings(pki, server, tmp_path, ca="other-ca", **{"insecure-skip-tls-verify": True})
        async with Cluster(how) as cluster:
            assert await server_version(cluster) == (1, 36)
