"""Models: a name, its saved versions 1, 2, 3…, and movable aliases such as ``champion``."""

from typing import Annotated, Literal

import msgspec

from shared.contracts.common import Chunk, Done, Instant, Labels, ListRequest, Name, Named, Page
from shared.contracts.datastore import Volume
from shared.contracts.rpc import Verb
from shared.contracts.training import Lineage

VersionState = Literal["saving", "ready", "failed"]
VersionNumber = Annotated[int, msgspec.Meta(ge=1)]


class SaveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a save names: a training and a path of it, or a datastore and a path in it.

    Attributes:
        path: the SavedModel's folder: as the training's command sees it, or relative to the datastore.
        labels: kept with the version.
    """

    path: str
    training: Name | None = None
    datastore: Name | None = None
    labels: Labels = {}


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a signature; -1 is an unknown size, a None shape an unknown rank."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A serving signature of a SavedModel."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    method: str = ""


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One saved SavedModel; it never changes once it is ready.

    Attributes:
        size: bytes of all files.
        digest: ``sha256:…`` of the tar that a download gives.
        archive_size: bytes of that tar.
        served_by: servings that serve it now.
    """

    project: Name
    model: Name
    number: VersionNumber
    state: VersionState
    created_at: Instant
    lineage: Lineage
    reason: str = ""
    ready_at: Instant | None = None
    size: int = 0
    files: int = 0
    digest: str = ""
    archive_size: int = 0
    framework: str = ""
    signatures: tuple[Signature, ...] = ()
    labels: Labels = {}
    aliases: tuple[str, ...] = ()
    served_by: tuple[str, ...] = ()


class Alias(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A movable pointer to a version."""

    project: Name
    model: Name
    name: Name
    version: VersionNumber
    moved_at: Instant
    moved_by: str = ""


class AliasMove(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of an alias's history, newest first; ``version`` None is its deletion."""

    version: VersionNumber | None
    previous: VersionNumber | None
    moved_at: Instant
    moved_by: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model as users see it; ``latest`` is the newest ready version."""

    project: Name
    name: Name
    created_at: Instant
    versions: int
    latest: VersionNumber | None = None
    aliases: dict[str, int] = {}


class ServableVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What the serving room needs of a version: where its files lie.

    Attributes:
        volume: the model store.
        path: the version's SavedModel, relative to the volume.
    """

    project: Name
    model: Name
    number: VersionNumber
    volume: Volume
    path: str
    digest: str = ""


class VersionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.version.<event>.<project>.<model>``."""

    version: Version


class AliasEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.alias.<event>.<project>.<model>``."""

    alias: Alias
    previous: VersionNumber | None = None


class ModelEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.model.<event>.<project>.<model>``."""

    model: Name


# -- verbs ------------------------------------------------------------------------------------------


class SaveVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    model: Name
    save: SaveRequest


class VersionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    model: Name
    number: VersionNumber


class ListVersions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    model: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    cursor: str | None = None
    state: str | None = None
    labels: Labels = {}


class ReadArchive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a part of the tar of a ready version, from ``offset`` on."""

    project: Name
    model: Name
    number: VersionNumber
    offset: int = 0


class SetAlias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    model: Name
    alias: Name
    version: VersionNumber


class AliasRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    model: Name
    alias: Name


class ResolveVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a ready version by number or by alias (exactly one of the two)."""

    project: Name
    model: Name
    version: VersionNumber | None = None
    alias: Name | None = None


SAVE = Verb("registry", "save", SaveVersion, Version)
LIST_MODELS = Verb("registry", "list_models", ListRequest, Page[Model])
GET_MODEL = Verb("registry", "get_model", Named, Model)
DELETE_MODEL = Verb("registry", "delete_model", Named, Done)
LIST_VERSIONS = Verb("registry", "list_versions", ListVersions, Page[Version])
GET_VERSION = Verb("registry", "get_version", VersionRequest, Version)
DELETE_VERSION = Verb("registry", "delete_version", VersionRequest, Done)
READ_ARCHIVE = Verb("registry", "read_archive", ReadArchive, Chunk)
SET_ALIAS = Verb("registry", "set_alias", SetAlias, Alias)
GET_ALIAS = Verb("registry", "get_alias", AliasRequest, Alias)
DELETE_ALIAS = Verb("registry", "delete_alias", AliasRequest, Done)
LIST_ALIASES = Verb("registry", "list_aliases", Named, Page[Alias])
ALIAS_HISTORY = Verb("registry", "alias_history", AliasRequest, Page[AliasMove])
RESOLVE = Verb("registry", "resolve", ResolveVersion, ServableVersion)
