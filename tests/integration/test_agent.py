"""Agents as processes: they answer who knows the token, and end by themselves."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx

from shared.agent import Agent, digest_of
from shared.errors import Conflict

TOKEN = "t" * 64


async def ask(url: str, token: str, ask: object) -> dict[str, object]:
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json={"token": token, "ask": ask})
        assert answer.status_code == 200
        found: dict[str, object] = answer.json()
        return found


async def test_the_files_agent_answers_until_it_is_told_to_end(tmp_path: Path, unused_tcp_port: int) -> None:
    environment = {
        **os.environ,
        "ELEARN_AGENT_PORT": str(unused_tcp_port),
        "ELEARN_AGENT_TOKEN_DIGEST": digest_of(TOKEN),
        "ELEARN_AGENT_IDLE_SECONDS": "60",
    }
    module = "services.datastore.cloud.kubernetes.agent"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, env=environment)
    url = f"http://127.0.0.1:{unused_tcp_port}/"
    try:
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            while True:
                try:
                    assert (await client.get(f"{url}healthz")).text == "ok"
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        refused = await ask(url, "wrong", {"type": "stat", "path": ""})
        assert "does not know this token" in str(refused["problem"])
        malformed = await ask(url, TOKEN, {"type": "format the disk"})
        assert "malformed" in str(malformed["problem"])
        told = await ask(url, TOKEN, {"type": "stat", "path": "../etc"})
        assert "invalid" in str(told["problem"])
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_an_agent_that_nobody_asks_ends_but_not_while_it_works(unused_tcp_port: int) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(question: bytes) -> object:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
        raise Conflict("done, and badly")

    agent = Agent(slow, token_digest=digest_of(TOKEN), idle_seconds=1.0)
    running = asyncio.create_task(agent.run("127.0.0.1", unused_tcp_port))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while True:
            try:
                asking = asyncio.create_task(ask(f"http://127.0.0.1:{unused_tcp_port}/", TOKEN, {}))
                await asyncio.wait({asking}, timeout=1.5)  # longer than it would idle
                assert not running.done()
                release.set()
                assert "done, and badly" in str((await asking)["problem"])
                break
            except httpx.ConnectError:
                await asyncio.sleep(0)
        await running
