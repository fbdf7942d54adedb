"""Server-side apply as the API server does it: who owns which field, what conflicts, what goes. Pure."""

from collections.abc import Iterator
from typing import Any

Path = tuple[str, ...]
Owned = dict[tuple[str, str], set[Path]]  # (manager, Apply or Update): leaves
Document = dict[str, Any]

_KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("containers", "initContainers", "volumes", "env", "imagePullSecrets", "resourceClaims", "secrets"), ("name",)
    ),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_NEVER = {("metadata", field) for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}


class Conflicts(Exception):
    """(field, manager) of each field that somebody else owns and that would change."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        super().__init__(fields)
        self.fields = fields


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field that can be owned, with its value."""
    keys = _keys(path, value)
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from leaves(part, (*path, name))
    elif keys:
        for item in value:
            yield from leaves(item, (*path, _item(item, keys)))
    elif path[:2] not in _NEVER and path not in (("apiVersion",), ("kind",)):
        yield path, value


def apply(
    live: Document | None, wanted: Document, owned: Owned, manager: str, *, force: bool
) -> tuple[Document, Owned]:
    """The object after an apply, and who owns what then.

    Raises:
        Conflicts: unless forced.
    """
    me = (manager, "Apply")
    mine = dict(leaves(wanted))
    old = dict(leaves(live)) if live else {}
    conflicts = [
        (_dotted(path), who[0])
        for path, value in mine.items()
        for who, paths in owned.items()
        if who != me and path in paths and path in old and old[path] != value
    ]
    if conflicts and not force:
        raise Conflicts(conflicts)
    after = {who: set(paths) for who, paths in owned.items()}
    for path, value in mine.items():
        for who, paths in after.items():
            if who != me and path in paths and old.get(path) != value:
                paths.discard(path)
    dropped = after.get(me, set()) - set(mine)
    after[me] = set(mine)
    merged = _merge(live or {}, wanted, ())
    for path in dropped:
        if not any(path in paths for paths in after.values()):
            _remove(merged, path)
    return merged, {who: paths for who, paths in after.items() if paths}


def written(before: Document | None, after: Document, owned: Owned, manager: str) -> Owned:
    """Who owns what after an ordinary write: whoever changed a field."""
    old, new = dict(leaves(before)) if before else {}, dict(leaves(after))
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    result = {who: {path for path in paths if path in new and path not in changed} for who, paths in owned.items()}
    result.setdefault((manager, "Update"), set()).update(changed)
    return {who: paths for who, paths in result.items() if paths}


def strategic(live: Any, change: Any, path: Path = ()) -> Any:
    """A strategic merge patch: as a merge patch, but lists with keys are merged."""
    if isinstance(change, dict) and isinstance(live, dict):
        result = dict(live)
        for name, part in change.items():
            if part is None:
                result.pop(name, None)
            else:
                result[name] = strategic(result.get(name), part, (*path, name))
        return result
    keys = _keys(path, change)
    if keys and isinstance(live, list):
        return _merge_items(live, change, path, keys, strategic)
    return change


def merge_patch(live: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    result = dict(live) if isinstance(live, dict) else {}
    for name, part in change.items():
        if part is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), part)
    return result


def _merge(live: Any, wanted: Any, path: Path) -> Any:
    if isinstance(wanted, dict) and isinstance(live, dict):
        result = dict(live)
        for name, part in wanted.items():
            result[name] = _merge(result[name], part, (*path, name)) if name in result else part
        return result
    keys = _keys(path, wanted)
    if keys and isinstance(live, list):
        return _merge_items(live, wanted, path, keys, _merge)
    return wanted


def _merge_items(live: list[Any], wanted: list[Any], path: Path, keys: tuple[str, ...], merge: Any) -> list[Any]:
    result = list(live)
    places = {_item(item, keys): at for at, item in enumerate(live)}
    for item in wanted:
        name = _item(item, keys)
        if name in places:
            result[places[name]] = merge(result[places[name]], item, (*path, name))
        else:
            result.append(item)
    return result


def _remove(value: Any, path: Path) -> None:
    """Remove a leaf, and what is empty then."""
    name, rest = path[0], path[1:]
    if isinstance(value, list):
        for at, item in enumerate(value):
            keys = tuple(part.partition("=")[0] for part in name[1:-1].split(","))
            if _item(item, keys) == name:
                if rest:
                    _remove(item, rest)
                if not rest or set(item) <= set(keys):
                    del value[at]
                return
    elif isinstance(value, dict) and name in value:
        if rest:
            _remove(value[name], rest)
            if value[name] in ({}, []):
                del value[name]
        else:
            del value[name]


def _keys(path: Path, value: Any) -> tuple[str, ...]:
    if not path or not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return ()
    if path[-1] == "ports":
        number = "containerPort" if "containerPort" in value[0] else "port"
        return (number, "protocol") if number in value[0] else ()
    keys = _KEYS.get(path[-1], ())
    return keys if all(key in item for item in value for key in keys) else ()


def _item(item: Document, keys: tuple[str, ...]) -> str:
    return "[" + ",".join(f"{key}={item.get(key, 'TCP' if key == 'protocol' else '')}" for key in keys) + "]"


def _dotted(path: Path) -> str:
    return "".join(part if part.startswith("[") else f".{part}" for part in path)
