"""The Jobs of the registry. Pure."""

from typing import Final

import msgspec

from services.registry.cloud.kubernetes import work
from services.registry.cloud.kubernetes.options import JobOptions
from services.registry.cloud.port import SaveJob
from services.registry.model import Key
from services.registry.reconcile import Job
from services.registry.save_job import job as files
from shared.contracts.datastore import ClaimVolume
from shared.errors import Internal
from shared.kube.names import PROJECT, ROOM, object_name
from shared.kube.own_pods import Mounted, OwnJob

ROOM_NAME: Final = "registry"
WORK: Final = "elearn.dev/work"
MODEL: Final = "elearn.dev/model"
VERSION: Final = "elearn.dev/version"
ATTEMPT: Final = "elearn.dev/attempt"
WORK_MODULE: Final = "services.registry.cloud.kubernetes.work"
AGENT_MODULE: Final = "services.registry.cloud.kubernetes.agent"

_KEPT: Final = 24 * 3600
_GRACE: Final = 5


def save_job(asked: SaveJob, *, installation: str, namespace: str, store: ClaimVolume, options: JobOptions) -> OwnJob:
    """The Job of one attempt at saving.

    Raises:
        Internal: the source is no claim.
    """
    if not isinstance(asked.volume, ClaimVolume):
        raise Internal("the Kubernetes cloud was handed a volume of another one")
    key = asked.job.key
    told = work.Save(
        job=files.Job(
            project=key.project,
            model=key.model,
            number=key.number,
            attempt=asked.job.attempt,
            volume=work.SOURCE,
            path=asked.path,
            shown=asked.shown,
            store=work.STORE,
        )
    )
    source = Mounted(
        claim=asked.volume.claim_name,
        path=work.SOURCE,
        sub_path=asked.volume.sub_path,
        read_only=True,
        single_node=asked.volume.single_node,
    )
    return OwnJob(
        name=object_name(installation, "save", *_parts(key), str(asked.job.attempt), room=6),
        namespace=namespace,
        labels={**key_labels(key), WORK: "save", ATTEMPT: str(asked.job.attempt)},
        module=WORK_MODULE,
        # The store decides on which node: servings hold it there for good, while whoever works on the source ends.
        mounts=(_mounted(store), source),
        env={work.VARIABLE: msgspec.json.encode(told).decode()},
        cpu=options.kubernetes_save_cpu,
        memory=options.kubernetes_save_memory,
        keep_seconds=_KEPT,
        grace_seconds=_GRACE,
    )


def remove_job(key: Key, *, installation: str, namespace: str, store: ClaimVolume) -> OwnJob:
    """The Job that removes a version's files."""
    told = work.Remove(project=key.project, model=key.model, number=key.number, store=work.STORE)
    return OwnJob(
        name=object_name(installation, "remove", *_parts(key), room=6),
        namespace=namespace,
        labels={**key_labels(key), WORK: "remove"},
        module=WORK_MODULE,
        mounts=(_mounted(store),),
        env={work.VARIABLE: msgspec.json.encode(told).decode()},
        memory="256Mi",
        grace_seconds=_GRACE,
    )


def archive_job(*, installation: str, namespace: str, store: ClaimVolume) -> OwnJob:
    """The agent that reads downloads of the models in a namespace."""
    return OwnJob(
        name=object_name(installation, "archive", namespace, room=6),
        namespace=namespace,
        labels={WORK: "archive"},
        module=AGENT_MODULE,
        mounts=(_mounted(store, read_only=True),),
    )


def key_labels(key: Key) -> dict[str, str]:
    """The labels of everything of a version."""
    return {ROOM: ROOM_NAME, PROJECT: key.project, MODEL: key.model, VERSION: str(key.number)}


def job_of(labels: dict[str, str]) -> Job | None:
    """Which save an object's labels tell of."""
    try:
        key = Key(labels[PROJECT], labels[MODEL], int(labels[VERSION]))
        return Job(key, int(labels[ATTEMPT])) if labels[WORK] == "save" else None
    except (KeyError, ValueError):
        return None


def _mounted(store: ClaimVolume, *, read_only: bool = False) -> Mounted:
    return Mounted(claim=store.claim_name, path=work.STORE, read_only=read_only, single_node=store.single_node)


def _parts(key: Key) -> tuple[str, str, str]:
    return key.project, key.model, str(key.number)
