"""What a cluster can't do of a spec, or does in its own way. Pure."""

import re
from typing import Final

from services.scheduler.cloud.kubernetes.identity import QUEUE, QUEUE_PRIORITY
from services.scheduler.cloud.kubernetes.manifests import Setting, image_of
from services.scheduler.cloud.kubernetes.options import is_queue
from services.scheduler.spec import roles_of
from shared.contracts.problem import FieldError
from shared.contracts.training import TrainingSpec

_VENV: Final = "venv:"
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE: Final = re.compile(
    rf"(?:(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,})?"
)
"""The grammar of references to images of the container registries' own library, ``distribution/reference``."""


_OWNERS: Final = {
    "elearn.dev": "elearn",
    "kubernetes.io": "Kubernetes",
    "k8s.io": "Kubernetes",
    "kueue.x-k8s.io": "Kueue",
}
"""Whose labels have these prefixes, and those of domains below them."""
_OF_KUBERNETES: Final = frozenset({"controller-uid", "job-name"})


def spec_errors(spec: TrainingSpec, queue: str = "") -> list[FieldError]:
    """What can't be.

    Args:
        queue: Kueue's, where the training names none.
    """
    return [*_image_errors(spec), *_label_errors(spec), *_queue_errors(spec, queue)]


def _image_errors(spec: TrainingSpec) -> list[FieldError]:
    if spec.image is None:
        return []
    if spec.image.startswith(_VENV):
        message = "virtual environments are there on the local cloud alone; name a container image"
        return [FieldError(field="image", message=message)]
    if not _IMAGE.fullmatch(spec.image):
        return [FieldError(field="image", message=f"{spec.image!r} is no name of a container image")]
    return []


def _label_errors(spec: TrainingSpec) -> list[FieldError]:
    """They go to Jobs and pods, where some mean something."""
    return [
        FieldError(field=f"labels.{key}", message=f"belongs to {owner}: choose another label")
        for key in spec.labels
        if (owner := _owner(key))
    ]


def _queue_errors(spec: TrainingSpec, queue: str) -> list[FieldError]:
    named = spec.labels.get(QUEUE)
    if named is not None and not is_queue(named):
        return [FieldError(field=f"labels.{QUEUE}", message=f"{named!r} can't be the name of a queue")]
    if QUEUE_PRIORITY in spec.labels and not (named or queue):
        return [FieldError(field=f"labels.{QUEUE_PRIORITY}", message=f"means something only beside {QUEUE}")]
    return []


def _owner(label: str) -> str:
    """Who gives a label its meaning; "" where it is the user's own, or meant for Kueue."""
    if label in (QUEUE, QUEUE_PRIORITY):
        return ""
    prefix, slash, _ = label.rpartition("/")
    if not slash:
        return "Kubernetes" if label in _OF_KUBERNETES else ""
    return next((whose for domain, whose in _OWNERS.items() if f".{prefix}".endswith(f".{domain}")), "")


def notes(project: str, spec: TrainingSpec, setting: Setting) -> tuple[str, ...]:
    """What the user should know."""
    told = []
    if spec.image is None:
        told.append(f"no image is named: tasks run in {image_of(None, setting)}")
        if not setting.options.kubernetes_training_image and _wants_gpus(spec):
            told.append("elearn's own image computes on CPUs: name one that uses GPUs, or they are held for nothing")
    if not setting.projects.may_be_root(project):
        told.append(f"tasks run as user {setting.projects.kubernetes_run_as}, whatever the image says")
    return tuple(told)


def _wants_gpus(spec: TrainingSpec) -> bool:
    return any(role.gpu or role.gpus for role in roles_of(spec).values())
