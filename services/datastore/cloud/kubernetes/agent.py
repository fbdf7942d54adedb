"""``python -m services.datastore.cloud.kubernetes.agent``: works on the files of one mounted datastore."""

import contextlib
from typing import Final, assert_never

import msgspec

from services.datastore.cloud.kubernetes import questions
from services.datastore.cloud.local import files
from shared.agent import Handle, main
from shared.errors import ElearnError

_ABANDONED: Final = 3600.0


def handler(root: str) -> Handle:
    """Answers questions about the files below ``root``."""

    def handle(ask: bytes) -> object:
        question = msgspec.json.decode(ask, type=questions.Question)
        match question:
            case questions.TryIt():
                return files.probe(root, read_only=question.read_only)
            case questions.ListFolder():
                return files.list_folder(root, question.path, after=question.after, limit=question.limit)
            case questions.Stat():
                return files.stat_path(root, question.path)
            case questions.Read():
                return files.read_file(root, question.path, offset=question.offset, length=question.length)
            case questions.Write():
                files.write_part(
                    root,
                    question.path,
                    upload=question.upload,
                    offset=question.offset,
                    data=question.data,
                    end=question.end,
                )
            case questions.Delete():
                files.delete_path(root, question.path)
            case questions.Sweep():
                return files.sweep(root, older_than=question.older_than)
            case _:
                assert_never(question)
        return None

    return handle


def sweep(root: str) -> None:
    """Remove uploads that were abandoned while nobody was here."""
    with contextlib.suppress(ElearnError, OSError):  # nothing to write to, or nothing at all: requests will tell
        files.sweep(root, older_than=_ABANDONED)


if __name__ == "__main__":
    sweep(questions.MOUNTED_AT)
    main(handler(questions.MOUNTED_AT))
