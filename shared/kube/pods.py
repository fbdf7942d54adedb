"""Commands run in pods, beside their processes.

They go through the API server, so that they work from wherever it can be reached. RBAC: ``get`` and ``create`` on
``pods/exec``; which of the two is asked for changed between releases.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec

from shared.errors import TooLarge, Unsupported
from shared.kube.client import Cluster
from shared.kube.errors import Status, Unreachable

_EXEC: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")  # v5, from 1.29 on, can tell the end of the input
_CHUNK: Final = 64 * 1024
_STDIN, _STDOUT, _STDERR, _ENDED, _CLOSE = 0, 1, 2, 3, 255


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended."""

    code: int
    stdout: bytes
    stderr: bytes


async def execute(
    cluster: Cluster,
    pod: str,
    command: Sequence[str],
    *,
    namespace: str | None = None,
    container: str = "",
    stdin: bytes | None = None,
    limit: int = 4 * 2**20,
    timeout: float = 30.0,
) -> Ended:
    """Run a command in a pod's container and wait for its end.

    Args:
        stdin: what it reads; None: nothing at all.
        limit: the most bytes of output that are taken.
        timeout: seconds it may take.

    Raises:
        TooLarge: there was more output.
        Unsupported: input needs Kubernetes 1.29.
        Unreachable: it took too long, or the connection was cut; the command may have run.
        NotFound: there is no such pod, or it does not run.
    """
    query = [("command", part) for part in command]
    query += [("stdout", "true"), ("stderr", "true")]
    if stdin is not None:
        query.append(("stdin", "true"))
    if container:
        query.append(("container", container))
    outputs = {_STDOUT: bytearray(), _STDERR: bytearray()}
    try:
        async with asyncio.timeout(timeout), cluster.socket(pod, "exec", query, _EXEC, namespace=namespace) as socket:
            if stdin is not None:
                if socket.protocol != _EXEC[0]:
                    raise Unsupported(
                        "this cluster can't tell a command where its input ends: it needs Kubernetes 1.29"
                    )
                for at in range(0, len(stdin), _CHUNK):
                    await socket.send_bytes(bytes([_STDIN]) + stdin[at : at + _CHUNK])
                await socket.send_bytes(bytes([_CLOSE, _STDIN]))
            async for message in socket:
                if message.type != aiohttp.WSMsgType.BINARY or not message.data:
                    continue
                channel, data = message.data[0], message.data[1:]
                if channel == _ENDED:
                    return Ended(code=_exit_code(data), stdout=bytes(outputs[_STDOUT]), stderr=bytes(outputs[_STDERR]))
                if channel in outputs:
                    outputs[channel] += data
                    if sum(map(len, outputs.values())) > limit:
                        raise TooLarge(f"{command[0]} in pod {pod} printed more than {limit} bytes")
    except TimeoutError:
        raise Unreachable(f"{command[0]} in pod {pod} did not end within {timeout:g} s") from None
    raise Unreachable(f"the connection to {command[0]} in pod {pod} was cut")


def _exit_code(data: bytes) -> int:
    status = msgspec.json.decode(data, type=Status)
    for cause in status.causes:
        if cause.reason == "ExitCode":
            return int(cause.message)
    if status.reason or status.code >= 400:
        raise Unreachable(f"the command could not be run: {status.message}")
    return 0
