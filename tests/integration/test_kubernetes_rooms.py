"""Three rooms on real NATS and PostgreSQL and one emulated cluster: from a datastore to a model that is served."""

import contextlib
import hashlib
from pathlib import Path

import pytest

from services.datastore import app as datastore_app
from services.datastore.cloud.kubernetes import agent as files_agent
from services.datastore.cloud.kubernetes.driver import AGENT_MODULE as FILES
from services.datastore.settings import Settings as DatastoreSettings
from services.registry import app as registry_app
from services.registry.cloud.kubernetes import agent as archive_agent
from services.registry.cloud.kubernetes.manifests import AGENT_MODULE as ARCHIVES
from services.registry.cloud.kubernetes.manifests import WORK_MODULE
from services.registry.settings import Settings as RegistrySettings
from services.serving import app as serving_app
from services.serving.settings import Settings as ServingSettings
from shared.bus import Bus
from shared.contracts import datastore, model, serving
from shared.contracts.common import Named
from shared.errors import Invalid, NotFound
from shared.kube.names import object_name
from shared.kube.resources import AUTOSCALERS, DEPLOYMENTS, JOBS, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, SECRETS
from tests.contract.job_cloud_models import write_saved_model
from tests.support.kube_kubelet import emulated
from tests.support.kube_registry import work_here
from tests.support.kube_rights import FORWARDING, ChartRights
from tests.support.kube_servings import ModelServers
from tests.support.rooms import running_room, until
from tests.support.servers import FreshDatabase

PROJECT = "search"


async def download(bus: Bus) -> bytes:
    data = b""
    while True:
        ask = model.ReadArchive(project=PROJECT, model="digits", number=1, offset=len(data))
        chunk = await bus.call(model.READ_ARCHIVE, ask)
        data += chunk.data
        if chunk.end:
            return data


async def test_a_datastore_a_save_and_a_serving(
    clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models"
    async with contextlib.AsyncExitStack() as stack:
        server, life, kubelet, _ = await stack.enter_async_context(emulated(tmp_path / "claims", deploying=False))
        server.rights = ChartRights("datastore", "registry", "serving", beyond=[FORWARDING])
        kubelet.serve[FILES] = lambda root: files_agent.handler(str(root))
        kubelet.serve[ARCHIVES] = lambda root: archive_agent.handler(str(root))
        kubelet.run[WORK_MODULE] = work_here
        ModelServers(server, life, store / PROJECT / "digits")
        (tmp_path / "kubeconfig").write_text(server.kubeconfig())
        for name, value in {
            "ELEARN_KUBECONFIG": str(tmp_path / "kubeconfig"),
            "ELEARN_KUBERNETES_HOST_ROOTS": str(tmp_path / "data"),
            "ELEARN_KUBERNETES_MODEL_STORE": f"host:{store}",
            "ELEARN_KUBERNETES_SERVING_SERVER": "elearn",
        }.items():
            monkeypatch.setenv(name, value)
        given = {"ELEARN_CLOUD": "kubernetes", "ELEARN_HOME": str(tmp_path / "home")}
        for room, settings, app in (
            ("datastore", DatastoreSettings, datastore_app),
            ("registry", RegistrySettings, registry_app),
            ("serving", ServingSettings, serving_app),
        ):
            url = await fresh_database()
            running = running_room(room, settings, app.compose, clean_nats, url, given)
            bus = await stack.enter_async_context(running)

        with pytest.raises(Invalid, match=r"glusterfs: the kubernetes cloud offers: .*mount the volume on every node"):
            spec = datastore.DatastoreSpec(name="g", glusterfs=datastore.GlusterFs(servers=("a",), volume="v"))
            await bus.call(datastore.CREATE, datastore.CreateDatastore(project=PROJECT, spec=spec))

        with pytest.raises(Invalid, match=r"claim.name: claim models-\S+ is where elearn keeps models"):
            claim = datastore.Claim(name=object_name("elearn", "models"))
            spec = datastore.DatastoreSpec(name="m", claim=claim)
            await bus.call(datastore.CREATE, datastore.CreateDatastore(project=PROJECT, spec=spec))

        spec = datastore.DatastoreSpec(name="runs", local=datastore.Local(path=str(tmp_path / "data" / "runs")))
        await bus.call(datastore.CREATE, datastore.CreateDatastore(project=PROJECT, spec=spec))
        named = Named(project=PROJECT, name="runs")
        await until(lambda: bus.call(datastore.GET, named), lambda found: found.state == "ready")
        assert (await bus.call(datastore.PROBE, named)).ok
        export = write_saved_model(tmp_path / "original")
        for path in sorted(export.rglob("*")):
            if path.is_file():
                await bus.call(
                    datastore.WRITE_FILE,
                    datastore.WriteFile(
                        project=PROJECT,
                        name="runs",
                        path=f"export/{path.relative_to(export)}",
                        upload="u",
                        offset=0,
                        data=path.read_bytes(),
                        end=True,
                    ),
                )
        found = await bus.call(datastore.LIST_FILES, datastore.ListFiles(project=PROJECT, name="runs", path="export"))
        assert "export/saved_model.pb" in [entry.path for entry in found.items]

        save = model.SaveRequest(datastore="runs", path="export")
        asked = model.SaveVersion(project=PROJECT, model="digits", save=save)
        await bus.call(model.SAVE, asked)
        version = model.VersionRequest(project=PROJECT, model="digits", number=1)
        saved = await until(lambda: bus.call(model.GET_VERSION, version), lambda found: found.state != "saving")
        assert saved.state == "ready", saved.reason
        assert f"sha256:{hashlib.sha256(await download(bus)).hexdigest()}" == saved.digest

        wanted = serving.ServingSpec(name="digits", model="digits", version=1, replicas=2)
        await bus.call(serving.CREATE, serving.CreateServing(project=PROJECT, spec=wanted))
        digits = Named(project=PROJECT, name="digits")
        ready = await until(lambda: bus.call(serving.GET, digits), lambda found: found.state == "ready")
        assert ready.ready_replicas == 2
        assert ready.endpoint is not None
        assert ready.endpoint.rest.startswith("http://127.0.0.1:")  # this elearn runs outside the cluster
        assert ready.endpoint.rest.endswith("/v1/models/digits")

        patch = serving.ServingPatch(max_replicas=4)
        await bus.call(serving.UPDATE, serving.UpdateServing(project=PROJECT, name="digits", patch=patch))
        await until(lambda: gone(server.store.all(AUTOSCALERS)), lambda none: not none)
        await until(lambda: bus.call(serving.GET, digits), lambda found: found.state == "ready")
        with pytest.raises(Invalid, match="max_replicas: must be at least as many as replicas"):
            patch = serving.ServingPatch(replicas=9)
            await bus.call(serving.UPDATE, serving.UpdateServing(project=PROJECT, name="digits", patch=patch))

        await bus.call(serving.DELETE, digits)
        await until(lambda: gone(server.store.all(DEPLOYMENTS)), bool)
        await bus.call(datastore.DELETE, named)
        with pytest.raises(NotFound):
            await until(lambda: bus.call(datastore.GET, named), lambda _: False)
        left = [each["metadata"]["labels"]["elearn.dev/room"] for each in server.store.all(PERSISTENT_VOLUMES)]
        assert left == ["registry"]
        assert len(server.store.all(PERSISTENT_VOLUME_CLAIMS)) == 1
        assert {each["metadata"]["namespace"] for each in server.store.all(SECRETS)} == {"default"}
        assert all("save" not in each["metadata"]["name"] for each in server.store.all(JOBS))


async def gone(found: list[dict[str, object]]) -> bool:
    return not found
