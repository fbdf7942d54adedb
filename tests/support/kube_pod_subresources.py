"""What an API server hands on to kubelets: a pod's ports, commands that run in it, and the logs of its containers."""

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import WSMsgType, web

from tests.support.kube_errors import ApiError
from tests.support.kube_fields import Document
from tests.support.kube_logs import KubeletLogs

Execute = Callable[[str, list[str], bytes], tuple[int, bytes, bytes]]
"""(pod, command, input): what becomes of it, as (exit code, output, errors)."""


async def forward(request: web.Request, port: int, address: tuple[str, int] | None) -> web.StreamResponse:
    """Forward to a pod's port what the client sends; no address: nobody listens there."""
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    told = port.to_bytes(2, "little")
    await socket.send_bytes(b"\0" + told)
    await socket.send_bytes(b"\1" + told)
    if address is None:
        await socket.send_bytes(b"\1" + f"error forwarding port {port}: connection refused".encode())
        await socket.close()
        return socket
    reader, writer = await asyncio.open_connection(*address)

    async def back() -> None:
        while data := await reader.read(65536):
            await socket.send_bytes(b"\0" + data)
        await socket.close()

    task = asyncio.create_task(back())
    try:
        async for message in socket:
            if message.type == WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
    finally:
        writer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await writer.wait_closed()
    return socket


async def execute(request: web.Request, pod: str, protocol: str, on_exec: Execute) -> web.StreamResponse:
    """Run a command in a pod."""
    socket = web.WebSocketResponse(protocols=(protocol,))
    await socket.prepare(request)
    stdin = bytearray()
    if request.query.get("stdin") == "true":
        async for message in socket:
            if message.data[0] == 255:
                break
            stdin += message.data[1:]
    code, out, err = on_exec(pod, request.query.getall("command"), bytes(stdin))
    for channel, data in ((b"\1", out), (b"\2", err)):
        for at in range(0, len(data), 30000):
            await socket.send_bytes(channel + data[at : at + 30000])
    status: Document = {"metadata": {}, "status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        status = {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "details": {"causes": causes},
        }
    await socket.send_bytes(b"\3" + msgspec.json.encode(status))
    await socket.close()
    return socket


async def read_log(request: web.Request, logs: KubeletLogs, key: tuple[str, str, str]) -> web.StreamResponse:
    """Serve the log of a container: namespace, pod, container."""
    file = logs.get(key)
    if file is None:
        _, pod, container = key
        raise ApiError(
            400, "BadRequest", f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating'
        )
    return await logs.answer(request, file)
