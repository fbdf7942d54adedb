"""A tree can't be left, whatever its paths and links say."""

import os
from pathlib import Path

import pytest

from shared.beneath import NotAFileError, OutsideError, Tree


@pytest.fixture
def top(tmp_path: Path) -> Path:
    root = tmp_path.resolve() / "top"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (root / "a" / "to-b").symlink_to("b")
    (root / "absolute").symlink_to(root / "a")
    (root / "up").symlink_to("../secret")
    (root / "away").symlink_to(tmp_path)
    (root / "etc").symlink_to("/etc")
    (root / "round").symlink_to("round")
    (root / "a" / "climb").symlink_to("../../top/a")
    (root / "dangling").symlink_to("a/nothing")
    return root


def read(tree: Tree, path: str) -> str:
    descriptor = tree.open_file(path)
    with os.fdopen(descriptor) as file:
        return file.read()


@pytest.mark.parametrize("path", ["a/b/file", "./a//b/file", "a/to-b/file", "absolute/b/file", "a/b/../b/file"])
def test_stays_inside(top: Path, path: str) -> None:
    assert read(Tree(str(top)), path) == "inside"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a/../../secret",
        "up",
        "away/secret",
        "etc/passwd",
        "/etc/passwd",
        "round",
        "a/climb/b/file",
        "a\0b",
    ],
)
def test_never_leaves(top: Path, path: str) -> None:
    with pytest.raises(OutsideError):
        read(Tree(str(top)), path)


def test_missing_is_missing(top: Path) -> None:
    for path in ("nothing", "a/nothing/file", "dangling"):
        with pytest.raises(FileNotFoundError):
            read(Tree(str(top)), path)


def test_a_pipe_is_not_waited_for(top: Path) -> None:
    os.mkfifo(top / "pipe")
    with pytest.raises(NotAFileError, match="a pipe"):
        read(Tree(str(top)), "pipe")


def test_a_link_at_the_end_can_be_named_itself(top: Path) -> None:
    with Tree(str(top)).at("up", follow=False) as spot:
        os.unlink(spot.name, dir_fd=spot.directory)
    assert not (top / "up").is_symlink()
    assert (top.parent / "secret").exists()


def test_parents_are_made_inside_only(top: Path) -> None:
    tree = Tree(str(top))
    with tree.at("new/er/file", make_parents=True) as spot:
        assert spot.name == "file"
    assert (top / "new" / "er").is_dir()
    with pytest.raises(OutsideError), tree.at("away/new/file", make_parents=True):
        pass
    assert not (top.parent / "new").exists()


def test_a_root_that_became_a_link_is_refused(top: Path, tmp_path: Path) -> None:
    tree = Tree(str(top))
    top.rename(tmp_path / "moved")
    top.symlink_to(tmp_path / "moved")
    with pytest.raises(OutsideError, match="symbolic link"):
        read(tree, "a/b/file")


def test_no_descriptor_is_left_open(top: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("a/b/file", "away/secret", "nothing", "a/b/file/deeper"):
        try:
            read(Tree(str(top)), path)
        except (OutsideError, OSError):
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
