"""Where tests take their servers from, on machines whose Docker engine is as it may be."""

from pathlib import Path

import pytest

from tests.support.servers import docker_has


@pytest.mark.parametrize(
    ("engine", "has"),
    [
        ("exit 0", True),
        ('[ "$1" = pull ]', True),
        ('[ "$1" != pull ] && [ "$1" != image ]', False),  # it answers, and can't reach where images come from
        ("exit 1", False),
        (None, False),
    ],
)
def test_containers_are_used_where_the_image_can_be_had(
    engine: str | None, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine is not None:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{engine}\n")
        (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker_has("nats:2.11-alpine") is has
