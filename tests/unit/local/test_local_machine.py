"""What this machine has, by measure or by setting."""

import os

import pynvml
import pytest

from shared.errors import Invalid, Unavailable
from shared.local import gpus
from shared.local.gpus import Gpu, environment, inventory
from shared.local.machine import detect, human_bytes


def test_measures_what_this_process_may_use() -> None:
    machine = detect({"ELEARN_FAKE_GPUS": "1"})
    assert 0 < machine.cpu <= len(os.sched_getaffinity(0))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory <= physical * 1.01


@pytest.mark.parametrize(
    ("cpus", "memory", "expected"),
    [
        ("8", "16Gi", (8.0, 16 * 2**30)),
        ("0.5", "512Mi", (0.5, 512 * 2**20)),
        ("2", "1.5G", (2.0, 1_500_000_000)),
        ("2", "1024", (2.0, 1024)),
        ("2", "1024KiB", (2.0, 2**20)),
    ],
)
def test_settings_say_otherwise(cpus: str, memory: str, expected: tuple[float, int]) -> None:
    machine = detect({"ELEARN_CPUS": cpus, "ELEARN_MEMORY": memory, "ELEARN_FAKE_GPUS": "1"})
    assert (machine.cpu, machine.memory) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ELEARN_CPUS", "many"),
        ("ELEARN_CPUS", "0"),
        ("ELEARN_CPUS", "nan"),
        ("ELEARN_CPUS", "inf"),
        ("ELEARN_MEMORY", "8 gigs"),
        ("ELEARN_MEMORY", "-1Gi"),
        ("ELEARN_FAKE_GPUS", "some"),
        ("ELEARN_FAKE_GPUS", "-1"),
    ],
)
def test_settings_that_mean_nothing_are_named(name: str, value: str) -> None:
    with pytest.raises(Invalid) as refused:
        detect({"ELEARN_FAKE_GPUS": "1", name: value})
    assert refused.value.errors[0].field == name


def test_a_fake_inventory() -> None:
    found = inventory({"ELEARN_FAKE_GPUS": "2:NVIDIA H200"})
    assert [(gpu.index, gpu.name, gpu.fake) for gpu in found] == [(0, "NVIDIA H200", True), (1, "NVIDIA H200", True)]
    assert inventory({"ELEARN_FAKE_GPUS": "0"}) == ()


def test_a_task_sees_its_gpus_and_no_other() -> None:
    real = [Gpu(index=n, uuid=f"GPU-{n}", name="T", memory=1) for n in range(4)]
    assert environment([real[1], real[3]]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-3",
        "NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-3",
    }
    assert environment([])["CUDA_VISIBLE_DEVICES"] == ""
    assert environment([])["NVIDIA_VISIBLE_DEVICES"] == "none"
    assert environment(inventory({"ELEARN_FAKE_GPUS": "3"})[2:])["CUDA_VISIBLE_DEVICES"] == "2"


class Driver:
    """NVML with two GPUs."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, name, getattr(self, name))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{'ab'[handle]}1")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: b"NVIDIA T")
        memory = type("Memory", (), {"total": 16 * 2**30})
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: memory)

    def nvmlInit(self) -> None:
        if self.problem:
            raise self.problem

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("lent", "expected"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1", [1]),
        ("1,0", [0, 1]),
        ("GPU-b1", [1]),
        ("GPU-b", [1]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("none", []),
    ],
)
def test_hands_out_only_what_was_lent_to_us(
    monkeypatch: pytest.MonkeyPatch, lent: str | None, expected: list[int]
) -> None:
    Driver().install(monkeypatch)
    found = gpus.inventory({} if lent is None else {"CUDA_VISIBLE_DEVICES": lent})
    assert [gpu.index for gpu in found] == expected
    assert all(gpu.name == "NVIDIA T" and gpu.memory == 16 * 2**30 and not gpu.fake for gpu in found)


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)).install(monkeypatch)
    assert inventory({}) == ()


def test_a_driver_that_fails_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)).install(monkeypatch)
    with pytest.raises(Unavailable, match="driver does not answer"):
        inventory({})


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 * 2**30, "8 GiB"), (2**41, "2 TiB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert human_bytes(count) == words
