"""Where a command's spec comes from: a file, `--set`, or flags that stand for fields."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elearn.client.documents import Document


def is_name(text: str) -> bool:
    """Whether an argument is a name, and not a file (``-``, ``digits.yaml``, ``./digits``)."""
    from shared.contracts.common import NAME_PATTERN

    return re.fullmatch(NAME_PATTERN, text) is not None


def documents(file: str | None, kind: str, assignments: Sequence[str]) -> "list[Document]":
    """The documents of a file with the assignments made in each; one empty one where there is no file.

    Raises:
        Invalid: one is of another kind, or an assignment can't be made; nothing has been sent yet.
    """
    from pathlib import Path

    from elearn.client.documents import Document, read_documents
    from shared.errors import Invalid

    found = [Document({}, {}, "the flags", Path.cwd())] if file is None else read_documents(file)
    for document in found:
        if document.kind not in (kind, None):
            raise Invalid(f"{document.place('kind')}: kind: expected {kind}, got {document.kind}")
        for assignment in assignments:
            document.set(assignment)
    return found


def put(document: "Document", path: str, value: object) -> None:
    """Set a field for a flag; what the flag left out (None) stays as it is."""
    if value is None:
        return
    *above, last = path.split(".")
    at = document.data
    for part in above:
        below = at.get(part)
        if not isinstance(below, dict):
            below = at[part] = {}
        at = below
    at[last] = value


def split_command(text: str | None) -> list[str] | None:
    """A command as a shell splits it.

    Raises:
        Invalid: a quotation is open.
    """
    import shlex

    from shared.errors import Invalid

    if text is None:
        return None
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Invalid(f"--command: {error}") from None


def mount(text: str) -> dict[str, object]:
    """``DATASTORE:PATH[:ro|:own]`` as a mount.

    Raises:
        Invalid: it is not of this form.
    """
    from shared.errors import Invalid

    datastore, _, rest = text.partition(":")
    path, _, how = rest.partition(":")
    flags: dict[str, dict[str, object]] = {"": {}, "ro": {"read_only": True}, "own": {"own": True}}
    if not datastore or not path or how not in flags:
        raise Invalid(f"--mount {text!r}: write it like digits:data/digits:ro or runs:out:own")
    return {"datastore": datastore, "path": path, **flags[how]}


def save(text: str | None) -> dict[str, object] | None:
    """``MODEL:PATH`` as what is saved on success.

    Raises:
        Invalid: it is not of this form.
    """
    from shared.errors import Invalid

    if text is None:
        return None
    model, _, path = text.partition(":")
    if not model or not path:
        raise Invalid(f"--save {text!r}: write it like digits:out/export")
    return {"model": model, "path": path}


def nfs(text: str | None) -> dict[str, object] | None:
    """``SERVER:PATH`` as a share.

    Raises:
        Invalid: it is not of this form.
    """
    from shared.errors import Invalid

    if text is None:
        return None
    server, colon, path = text.rpartition(":")
    if not server or not colon or not path.startswith("/"):
        raise Invalid(f"--nfs {text!r}: write it like nfs.example.org:/export/data")
    return {"server": server, "path": path}


def in_datastore(text: str) -> tuple[str, str] | None:
    """The datastore and path of ``NAME:PATH``; None for a path of this machine (``./odd:name`` too)."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and is_name(name) else None


def shares(texts: Sequence[str] | None) -> dict[int, int] | None:
    """``VERSION=PERCENT`` options as shares of the traffic.

    Raises:
        Invalid: one is not of this form.
    """
    from shared.errors import Invalid

    if not texts:
        return None
    found = {}
    for text in texts:
        version, _, share = text.partition("=")
        if not version.isdecimal() or not share.rstrip("%").isdecimal():
            raise Invalid(f"--traffic {text!r}: write it like 2=10")
        found[int(version)] = int(share.rstrip("%"))
    return found


def prediction(file: str | None, body: str | None, instances: str | None, inputs: str | None) -> dict[str, Any]:
    """What to predict on, out of a file (``-``: standard input) or of one of the options.

    Raises:
        Invalid: there is none or more than one, or it is not JSON of TensorFlow Serving's form.
    """
    import sys
    from pathlib import Path

    import msgspec

    from shared.errors import Invalid, Malformed

    options = {file or "": file, "--json": body, "--instances": instances, "--inputs": inputs}
    given = {source: text for source, text in options.items() if text is not None}
    if len(given) != 1:
        raise Invalid("give a JSON file, --json, --instances or --inputs, and only one of them")
    ((source, text),) = given.items()
    if file is not None:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Malformed(f"can't read {file}: {getattr(error, 'strerror', None) or error}") from None
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Malformed(f"{source} is not JSON: {error}") from None
    if inputs is not None:
        value = {"inputs": value}
    elif instances is not None or isinstance(value, list):
        value = {"instances": value}
    if not isinstance(value, dict) or not set(value) <= {"instances", "inputs", "signature_name"}:
        raise Invalid(f'{source}: expected {{"instances": […]}} or {{"inputs": …}}')
    return value
