"""Stamped answers of the API become bytes that were not taken before, whenever the kubelet is asked."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.cloud.kubernetes.log_lines import LogLines, Mark
from services.scheduler.cloud.kubernetes.log_sources import writer_of, writers_of
from shared.kube.objects import Pod
from tests.support.kube_logs import SECOND, Record, pieces, served

T = 1_795_507_200 * SECOND
"""2026-11-24T08:00:00Z."""


def read(answer: bytes, mark: Mark | None = None, *, chunk: int = 7) -> tuple[bytes, Mark | None]:
    lines = LogLines(mark)
    new = b"".join(lines.feed(answer[at : at + chunk]) for at in range(0, len(answer), chunk))
    return new, lines.reached()


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"2026-11-24T08:00:00.000000001Z one\n", b"one\n", id="a line"),
        pytest.param(b"2026-11-24T09:00:00.000000001+01:00 one\n", b"one\n", id="a node with a time zone"),
        pytest.param(b"2026-11-24T08:00:00Z one\n", b"one\n", id="a stamp without a fraction"),
        pytest.param(b"2026-11-24T08:00:00.1Z \n", b"\n", id="an empty line"),
        pytest.param(b"2026-11-24T08:00:00.1Z one", b"one", id="no newline yet"),
        pytest.param(b"2026-11-24T08:00:00.1Z a\rb\0\xff\n", b"a\rb\0\xff\n", id="any bytes"),
        pytest.param(b"2026-11-24T08:00:00.1Z 2026-11-24T08:00:00.1Z x\n", b"2026-11-24T08:00:00.1Z x\n", id="twice"),
        pytest.param(b"unable to retrieve container logs for containerd://1", b"", id="the kubelet's own words"),
        pytest.param(
            b"2026-11-24T08:00:00.1Z a\nfailed to create fsnotify watcher: too many open files",
            b"a\n",
            id="the kubelet's own words at the end",
        ),
        pytest.param(b"2026-11-24T08:00:00.12345", b"", id="cut in a stamp"),
        pytest.param(b"the rest of a line\n2026-11-24T08:00:00.1Z a\n", b"a\n", id="begins in a line"),
        pytest.param(b"2026-02-30T08:00:00.1Z a\n", b"a\n", id="no such day"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_stamps_are_taken_off(answer: bytes, taken: bytes, chunk: int) -> None:
    assert read(answer, chunk=chunk)[0] == taken


def test_a_mark_says_from_which_second_on_to_ask() -> None:
    _, mark = read(b"2026-11-24T08:00:00.5Z a\n2026-11-24T08:00:01.5Z bc\n2026-11-24T08:00:01.6Z d\n")
    assert mark == Mark(T // SECOND + 1, T + 1_500_000_000, 5, T + 1_600_000_000)
    assert mark.since == "2026-11-24T08:00:01Z"
    assert Mark.read(mark.text) == mark
    assert Mark.read("") is None


def test_lines_are_waited_for_a_moment_after_their_second() -> None:
    _, mark = read(b"2026-11-24T08:00:00.9Z a\n2026-11-24T08:00:01.01Z b\n")
    assert mark is not None
    late = b"2026-11-24T08:00:00.9Z a\n2026-11-24T08:00:01.01Z b\n2026-11-24T08:00:00.99Z late\n"
    assert mark.since == "2026-11-24T08:00:00Z"
    assert read(late, mark)[0] == b"late\n"


def test_after_a_rotation_what_is_younger_is_new() -> None:
    _, mark = read(b"2026-11-24T08:00:00.1Z a\n2026-11-24T08:00:00.2Z b\n")
    lines = LogLines(mark)
    assert lines.feed(b"2026-11-24T08:00:00.2Z b\n2026-11-24T08:00:00.3Z c\n2026-11-24T08:00:00.25Z d\n") == b"c\nd\n"
    assert lines.gap


def test_nothing_new_keeps_the_mark() -> None:
    answer = b"2026-11-24T08:00:00.1Z a\n"
    _, mark = read(answer)
    assert read(answer, mark) == (b"", mark)
    assert read(b"", mark) == (b"", mark)


records = st.lists(
    st.tuples(st.sampled_from([0, 1, 10**6, 10**8, 7 * 10**8, SECOND, -(10**7)]), st.binary(max_size=6)), max_size=25
)


@settings(max_examples=200, deadline=None)
@given(written=records, asked=st.lists(st.integers(0, 25)), chunk=st.integers(1, 40), cut=st.integers(0, 60))
def test_each_byte_comes_once_whenever_it_is_asked_for(
    written: list[tuple[int, bytes]], asked: list[int], chunk: int, cut: int
) -> None:
    """Stamps repeat and go back a little between lines, lines come in pieces, answers break off anywhere."""
    file: list[Record] = []
    stamp = latest = T
    for step, data in written:
        in_line = bool(file) and not file[-1].data.endswith(b"\n")
        stamp = max(stamp + step, stamp if in_line else latest - SECOND // 20)
        latest = max(latest, stamp)
        file += [Record(stamp, piece) for piece in pieces(data)]
    log, mark = b"", None
    for number, upto in enumerate([*sorted(asked), len(file)]):
        answer = served(file[:upto], mark.second * SECOND if mark else 0, stamped=True)
        if upto < len(file) and number % 2:
            answer = answer[:cut]
        new, mark = read(answer, mark, chunk=chunk)
        log += new
    assert log == b"".join(record.data for record in file)


def pod(container: dict[str, object] | None = None, *, init: int | None = None, **changes: object) -> Pod:
    status: dict[str, object] = {"phase": changes.pop("phase", "Pending")}
    if container is not None:
        status["containerStatuses"] = [{"name": "task", "state": container}]
    if init is not None:
        status["initContainerStatuses"] = [{"name": "prepare", "state": {"terminated": {"exitCode": init}}}]
    labels = {"elearn.dev/role": "worker", "elearn.dev/first-index": "2"}
    labels["batch.kubernetes.io/job-completion-index"] = "1"
    metadata = {
        "name": changes.pop("name", "w"),
        "namespace": "ns",
        "uid": changes.pop("uid", "u"),
        "labels": labels,
        "creationTimestamp": "2026-11-24T08:00:00Z",
        "annotations": {"batch.kubernetes.io/job-index-failure-count": str(changes.pop("failures", 0))},
    }
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)


@pytest.mark.parametrize(
    ("found", "container", "stage"),
    [
        (pod(), "task", "waiting"),
        (pod({"waiting": {"reason": "PodInitializing"}}, init=0), "task", "waiting"),
        (pod({"running": {}}, init=0, phase="Running"), "task", "running"),
        (pod({"terminated": {"exitCode": 1}}, init=0, phase="Failed"), "task", "over"),
        (pod({"waiting": {"reason": "PodInitializing"}}, init=1, phase="Failed"), "prepare", "over"),
        (pod(phase="Failed"), "task", "over"),
    ],
)
def test_who_writes_a_log(found: Pod, container: str, stage: str) -> None:
    writer = writer_of(found)
    assert writer is not None
    assert (writer.task, writer.container, writer.stage) == ("worker-3", container, stage)


def test_pods_of_a_task_follow_each_other() -> None:
    found = writers_of([pod(uid="a", failures=1, name="second"), pod(uid="b", name="first")])
    assert [writer.pod for writer in found] == ["first", "second"]
    assert writer_of(msgspec.convert({"metadata": {"name": "other"}}, Pod)) is None
