"""What the cluster says, in one line."""

import pytest

from shared.kube.said import in_a_line

MOUNT = (
    'MountVolume.SetUp failed for volume "v" : mount failed: exit status 32\nMounting command: mount\n'
    "Mounting arguments: -t nfs files:/no /var/lib/kubelet/pods/" + "8417df64/" * 30 + "\n"
    "Output: mount.nfs: mounting files:/no failed, reason given by server: No such file or directory\n"
)


@pytest.mark.parametrize(
    ("reason", "message", "line"),
    [
        ("FailedScheduling", "0/1 nodes\n are available", "FailedScheduling: 0/1 nodes are available"),
        (
            "FailedMount",
            MOUNT,
            'FailedMount: MountVolume.SetUp failed for volume "v" : mount failed: exit status 32: '
            "mount.nfs: mounting files:/no failed, reason given by server: No such file or directory",
        ),
        ("X", "y" * 999, "X: " + "y" * 297),
    ],
)
def test_an_event_in_a_line(reason: str, message: str, line: str) -> None:
    assert in_a_line(reason, message) == line
