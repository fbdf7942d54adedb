"""Where the cluster is: read from a kubeconfig, or from the pod that we run in.

Read here and not by ``kubernetes_asyncio``, which leaves private keys in temporary files, runs plugins without a
time-out or a memory, and takes half a second to import; see docs/decisions/0009.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import yaml

from shared.errors import Unavailable, Unsupported
from shared.kube.credentials import Credential, ExecSpec, Fixed, Grant, Plugin, TokenFile, basic
from shared.kube.proxies import environment_proxy
from shared.kube.settings import KubernetesSettings

T = TypeVar("T")

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a cluster.

    Attributes:
        server: URL without a slash at its end.
        namespace: where to work unless told otherwise.
        home: the namespace of the pod that we run in, where the cluster was found by that; else "".
        authorities: certificates to trust, in PEM; "" for the system's.
        verify: check the server's certificate at all.
        server_name: the name in that certificate, where it is not the URL's.
        proxy: URL of a proxy, or "": what the environment says is in it already.
        headers: sent with each request (impersonation).
        credential: who we are.
    """

    server: str
    namespace: str
    credential: Credential
    home: str = ""
    authorities: str = ""
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    headers: dict[str, str] = {}

    @property
    def route(self) -> tuple[str, str, bool, str, str]:
        """What a connection pool depends on."""
        return self.server, self.authorities, self.verify, self.server_name, self.proxy


class _Cluster(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    username: str = ""
    password: str = ""
    act_as: str = msgspec.field(name="as", default="")
    act_as_uid: str = msgspec.field(name="as-uid", default="")
    act_as_groups: tuple[str, ...] | None = msgspec.field(name="as-groups", default=None)
    exec: ExecSpec | None = None
    auth_provider: dict[str, object] | None = None


class _Context(msgspec.Struct, frozen=True, kw_only=True):
    cluster: str
    user: str = ""
    namespace: str = ""


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cluster: msgspec.Raw = msgspec.Raw(b"")
    user: msgspec.Raw = msgspec.Raw(b"")
    context: msgspec.Raw = msgspec.Raw(b"")


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    clusters: tuple[_Named, ...] | None = None
    users: tuple[_Named, ...] | None = None
    contexts: tuple[_Named, ...] | None = None
    current_context: str = ""


def find_access(settings: KubernetesSettings, environ: Mapping[str, str]) -> Access:
    """The cluster that the settings mean. Reads files: call it in a thread.

    Raises:
        Unavailable: there is no cluster to be found, or a file that can't be read; the message says which.
        Unsupported: a way to authenticate that Kubernetes itself has given up.
    """
    listed = settings.kubeconfig or environ.get("KUBECONFIG", "")
    paths = [Path(part).expanduser() for part in listed.split(":") if part]
    if not paths and (usual := Path("~/.kube/config").expanduser()).is_file():
        paths = [usual]
    if paths:
        access = _from_files(paths, settings.kubernetes_context)
    elif environ.get("KUBERNETES_SERVICE_HOST"):
        access = _from_pod(environ, SERVICE_ACCOUNT)
    else:
        raise Unavailable(
            "no Kubernetes cluster is known: set ELEARN_KUBECONFIG (or KUBECONFIG) to a kubeconfig, or run in a pod",
            retry=30,
        )
    if settings.kubernetes_namespace:
        access = msgspec.structs.replace(access, namespace=settings.kubernetes_namespace)
    return access if access.proxy else msgspec.structs.replace(access, proxy=environment_proxy(access.server))


def _from_pod(environ: Mapping[str, str], folder: Path) -> Access:
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace = _text(folder / "namespace").strip() or "default"
    return Access(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=namespace,
        home=namespace,
        authorities=_text(folder / "ca.crt"),
        credential=TokenFile(folder / "token"),
    )


def _from_files(paths: list[Path], wanted: str) -> Access:
    configs = [(path, _config(path)) for path in paths if path.exists() or len(paths) == 1]
    if not configs:
        raise Unavailable(f"none of the kubeconfigs exists: {', '.join(map(str, paths))}", retry=30)
    told = ", ".join(str(path) for path, _ in configs)
    name = wanted or next((config.current_context for _, config in configs if config.current_context), "")
    if not name:
        raise Unavailable(f"{told}: no current context; set ELEARN_KUBERNETES_CONTEXT", retry=30)
    found_context = _named(configs, "contexts", name)
    if found_context is None:
        known = ", ".join(each.name for _, config in configs for each in config.contexts or ()) or "none"
        raise Unavailable(f"{told}: there is no context {name!r}; it has: {known}", retry=30)
    context = _as(_Context, found_context[0], found_context[1].context)
    found_cluster = _named(configs, "clusters", context.cluster)
    if found_cluster is None:
        raise Unavailable(f"{told}: context {name!r} names cluster {context.cluster!r}, which is not there", retry=30)
    folder = found_cluster[0].parent
    cluster = _as(_Cluster, found_cluster[0], found_cluster[1].cluster)
    if not cluster.server.startswith(("https://", "http://")):
        raise Unavailable(f"{told}: cluster {context.cluster!r}: server {cluster.server!r} is no http(s) URL", retry=30)
    authorities = _pem(folder, cluster.certificate_authority, cluster.certificate_authority_data)
    found_user = _named(configs, "users", context.user) if context.user else None
    if context.user and found_user is None:
        raise Unavailable(f"{told}: context {name!r} names user {context.user!r}, which is not there", retry=30)
    user = _as(_User, found_user[0], found_user[1].user) if found_user else _User()
    return Access(
        server=cluster.server.rstrip("/"),
        namespace=context.namespace or "default",
        authorities=authorities,
        verify=not cluster.insecure_skip_tls_verify,
        server_name=cluster.tls_server_name,
        proxy=cluster.proxy_url,
        headers=_impersonation(user),
        credential=_credential(user, cluster, authorities, found_user[0].parent if found_user else folder),
    )


def _credential(user: _User, cluster: _Cluster, authorities: str, folder: Path) -> Credential:
    if user.auth_provider is not None:
        provider = user.auth_provider.get("name", "?")
        raise Unsupported(
            f"the kubeconfig uses auth-provider {provider}, which Kubernetes removed in 1.26: use its exec plugin"
        )
    if user.exec is not None:
        told = {
            "server": cluster.server,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": base64.b64encode(authorities.encode()).decode(),
        }
        return Plugin(user.exec, told, folder)
    grant = Grant(
        certificate=_pem(folder, user.client_certificate, user.client_certificate_data),
        key=_pem(folder, user.client_key, user.client_key_data),
    )
    if user.token:  # as in kubectl, before tokenFile only where that is not set
        grant = msgspec.structs.replace(grant, authorization=f"Bearer {user.token}")
    elif user.username:
        grant = msgspec.structs.replace(grant, authorization=basic(user.username, user.password))
    return TokenFile(folder / user.token_file, grant) if user.token_file else Fixed(grant)


def _impersonation(user: _User) -> dict[str, str]:
    headers = {}
    if user.act_as:
        headers["Impersonate-User"] = user.act_as
    if user.act_as_uid:
        headers["Impersonate-Uid"] = user.act_as_uid
    if user.act_as_groups:
        if len(user.act_as_groups) > 1:
            raise Unsupported("the kubeconfig impersonates several groups (as-groups); elearn can do one")
        headers["Impersonate-Group"] = user.act_as_groups[0]
    return headers


def _config(path: Path) -> _Config:
    try:
        document = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise Unavailable(f"{path} is not a kubeconfig: {' '.join(str(error).split())[:200]}", retry=30) from None
    return _as(_Config, path, msgspec.Raw(msgspec.json.encode(document or {})))


def _named(configs: list[tuple[Path, _Config]], part: str, name: str) -> tuple[Path, _Named] | None:
    for path, config in configs:
        entries = {"clusters": config.clusters, "users": config.users, "contexts": config.contexts}[part]
        for entry in entries or ():
            if entry.name == name:
                return path, entry
    return None


def _as(kind: type[T], path: Path, raw: msgspec.Raw) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{path} is not a kubeconfig: {error}", retry=30) from None


def _pem(folder: Path, path: str, data: str) -> str:
    if data:
        try:
            return base64.b64decode(data, validate=False).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Unavailable(f"a certificate in the kubeconfig in {folder} is not base64: {error}", retry=30) from None
    return _text(folder / path) if path else ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"{path} can't be read: {error}; elearn needs it to find its cluster", retry=30) from None
