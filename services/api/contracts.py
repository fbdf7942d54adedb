"""``python -m services.api.contracts [FOLDER]`` writes OpenAPI and AsyncAPI where they are committed.

``--check`` writes nothing and fails where they differ from what the code says.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from services.api.asyncapi import asyncapi
from services.api.openapi import openapi
from services.api.routes.everything import ROUTES

FOLDER: Final = Path("docs/contracts")


def documents() -> dict[str, bytes]:
    """Both documents as JSON, by name."""
    release = version("elearn")
    return {
        name: msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        for name, document in (("openapi", openapi(ROUTES, release)), ("asyncapi", asyncapi(release)))
    }


def drifted(folder: Path) -> list[str]:
    """Files in a folder that are not what the code says."""
    return [
        f"{name}.json"
        for name, content in documents().items()
        if not (folder / f"{name}.json").is_file() or (folder / f"{name}.json").read_bytes() != content
    ]


def main(arguments: list[str]) -> int:
    """Write the documents, or check them; answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.api.contracts", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="only say what has drifted")
    options = parser.parse_args(arguments)
    if options.check:
        stale = drifted(options.folder)
        if stale:
            sys.stderr.write(
                f"{', '.join(stale)} in {options.folder} drifted from the code: "
                "run `python -m services.api.contracts` and commit\n"
            )
        return 1 if stale else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, content in documents().items():
        (options.folder / f"{name}.json").write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
