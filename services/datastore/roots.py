"""Which folders of this machine may become datastores: pure.

Both the path and the roots come in with their symbolic links resolved.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath


def root_problem(
    path: PurePosixPath,
    roots: Sequence[PurePosixPath],
    home: PurePosixPath,
    private: Sequence[str],
) -> str | None:
    """Why a folder may not be a datastore, or None.

    Args:
        roots: the folders that the operator named.
        home: ELEARN_HOME. A folder that holds it would show every project the operator's token.
        private: names of elearn's own folders directly below ``home``.
    """
    if not any(path == root or root in path.parents for root in roots):
        named = ", ".join(str(root) for root in roots) or "none"
        return f"{path} is below none of the folders that the operator allows (ELEARN_LOCAL_ROOTS): {named}"
    if path == home or path in home.parents:
        return f"{path} holds elearn's own files ({home}); choose a folder beside or below them"
    if home in path.parents and path.relative_to(home).parts[0] in private:
        return f"{path} is elearn's own; choose another folder"
    return None
