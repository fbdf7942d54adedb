"""The GPUs of this machine, and what a task must have in its environment to see its own only."""

import contextlib
import re
from collections.abc import Mapping, Sequence

import msgspec
import pynvml

from shared.errors import Invalid, Unavailable


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One whole GPU.

    Attributes:
        index: its place in PCI bus order, which is what a ledger hands out.
        uuid: NVML's id; ``fake-<n>`` in a fake inventory.
        memory: bytes.
    """

    index: int
    uuid: str
    name: str
    memory: int

    @property
    def fake(self) -> bool:
        """It exists in a setting only."""
        return self.uuid.startswith("fake-")


def inventory(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs tasks may have, in PCI bus order; empty on a machine without.

    ``ELEARN_FAKE_GPUS=N`` or ``N:NAME`` takes the place of the real ones. A ``CUDA_VISIBLE_DEVICES`` under which the
    service itself runs narrows them: what was not lent to us is not ours to hand out.

    Raises:
        Invalid: a setting can't be read.
        Unavailable: the driver is there and does not answer.
    """
    fake = environ.get("ELEARN_FAKE_GPUS", "")
    if fake:
        return _fake(fake)
    found = _nvml()
    lent = environ.get("CUDA_VISIBLE_DEVICES")
    return found if lent is None else _narrowed(found, lent)


def environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    """What makes CUDA see exactly these GPUs; none where there are none."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) if gpu.fake else gpu.uuid for gpu in gpus),
        "NVIDIA_VISIBLE_DEVICES": ",".join(str(gpu.index) if gpu.fake else gpu.uuid for gpu in gpus) or "none",
    }


def _fake(setting: str) -> tuple[Gpu, ...]:
    match = re.fullmatch(r"(\d{1,4})(?::(.{1,100}))?", setting.strip())
    if match is None:
        raise Invalid.field("ELEARN_FAKE_GPUS", f"{setting!r} is neither a number nor NUMBER:NAME")
    name = match[2] or "fake"
    return tuple(Gpu(index=index, uuid=f"fake-{index}", name=name, memory=16 * 2**30) for index in range(int(match[1])))


def _nvml() -> tuple[Gpu, ...]:
    try:
        pynvml.nvmlInit()
    except (
        pynvml.NVMLError_LibraryNotFound,
        pynvml.NVMLError_DriverNotLoaded,
        pynvml.NVMLError_NoPermission,
    ):
        return ()
    except pynvml.NVMLError as problem:
        raise Unavailable(f"the NVIDIA driver does not answer: {problem}") from problem
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):  # NVML enumerates in PCI bus order
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                Gpu(
                    index=index,
                    uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                    name=_text(pynvml.nvmlDeviceGetName(handle)),
                    memory=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                )
            )
    except pynvml.NVMLError as problem:
        raise Unavailable(f"the NVIDIA driver does not answer: {problem}") from problem
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return tuple(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _narrowed(found: Sequence[Gpu], lent: str) -> tuple[Gpu, ...]:
    """CUDA's own reading: names in order, cut at the first that means nothing."""
    visible = []
    for name in (part.strip() for part in lent.split(",")):
        if name.isdigit():
            match = [gpu for gpu in found if gpu.index == int(name)]
        else:
            match = [gpu for gpu in found if name and gpu.uuid.startswith(name)]
        if len(match) != 1 or match[0] in visible:
            break
        visible.append(match[0])
    return tuple(sorted(visible, key=lambda gpu: gpu.index))
