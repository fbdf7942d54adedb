"""Which versions a reload request asks for, and where they may lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.serving.server.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for.

    Attributes:
        versions: number to directory.
    """

    versions: Mapping[int, Path]
    labels: Mapping[str, int]


def wanted(config: Any, *, model: str, base_path: str | None) -> Wanted:
    """Reads a `ModelServerConfig`, the TensorFlow Serving way, from the disk below the base path.

    Raises:
        FailedPrecondition: this server was not given a base path.
        InvalidArgument: another model, another base path, or a policy without versions.
        NotFound: a version that is not on the disk.
        Unimplemented: a custom configuration.
    """
    if base_path is None:
        raise FailedPrecondition("reloading is off: this server was started without a base path")
    if config.WhichOneof("config") != "model_config_list":
        raise Unimplemented("only a model_config_list can be reloaded")
    models = list(config.model_config_list.config)
    if len(models) != 1 or models[0].name != model:
        raise InvalidArgument(f"this server serves one model, {model!r}; name it and no other")
    (entry,) = models
    if entry.model_platform not in ("", "tensorflow"):
        raise InvalidArgument(f"model_platform {entry.model_platform!r} is not supported; it is 'tensorflow'")
    root = Path(base_path).resolve()
    if entry.base_path and not Path(entry.base_path).resolve().is_relative_to(root):
        raise InvalidArgument(f"base_path must lie in {root}")
    folder = Path(entry.base_path).resolve() if entry.base_path else root
    versions = _chosen(_on_disk(folder, root), entry.model_version_policy, folder)
    labels = {label: int(number) for label, number in entry.version_labels.items()}
    return Wanted(versions, labels)


def _on_disk(folder: Path, root: Path) -> dict[int, Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise NotFound(f"can't read {folder}: {error.strerror}") from error
    return {
        int(entry.name): entry.resolve()
        for entry in entries
        # A link may lead out of the base path, and then is none of its versions.
        if entry.name.isdecimal() and int(entry.name) > 0 and entry.resolve().is_relative_to(root)
    }


def _chosen(found: Mapping[int, Path], policy: Any, folder: Path) -> dict[int, Path]:
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        numbers = sorted(set(policy.specific.versions))
        if not numbers:
            raise InvalidArgument("the specific version policy names no version")
        if missing := [number for number in numbers if number not in found]:
            raise NotFound(f"version {missing[0]} is not in {folder}")
    elif kind == "all":
        numbers = sorted(found)
    else:
        count = policy.latest.num_versions if kind == "latest" else 1
        numbers = sorted(found)[-max(int(count), 1) :]
    if not numbers:
        raise NotFound(f"there are no versions in {folder}")
    return {number: found[number] for number in numbers}
