"""The watch against somebody else's emulation of the API (kmock): what ours takes for granted, it may not do."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import kmock as kmocks

from shared.kube import Added, Cluster, Deleted, Modified, Pace, Synced, watch
from shared.kube.credentials import Fixed, Grant
from shared.kube.kubeconfig import Access
from shared.kube.objects import Pod
from shared.kube.resources import PODS

QUICK = Pace(first=0.001, longest=0.01, brief=0.05)


def pod(name: str, version: int, phase: str = "Pending") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": phase}}


def words(told: Any) -> str:
    match told:
        case Synced():
            return "synced"
        case Added(identity, seen):
            return f"+{identity.name} {seen.status.phase}"
        case Modified(identity, seen):
            return f"~{identity.name} {seen.status.phase}"
        case Deleted(identity, _):
            return f"-{identity.name}"
    raise AssertionError(told)


async def read(kmock: Any, count: int) -> list[str]:
    def find() -> Access:
        return Access(server=str(kmock.url).rstrip("/"), namespace="default", credential=Fixed(Grant()))

    heard: list[str] = []
    async with (
        asyncio.timeout(10),
        Cluster(find=find) as cluster,
        aclosing(watch(cluster, PODS, Pod, pace=QUICK)) as told,
    ):
        async for each in told:
            heard.append(words(each))
            if len(heard) == count:
                break
    return heard


def event(kind: str, document: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": document}).encode() + b"\n"


async def test_objects_of_a_server_without_resource_versions(kmock: Any) -> None:
    kmock.objects["v1/pods", "default", "a"] = {"metadata": {"name": "a", "namespace": "default", "uid": "u"}}
    assert await read(kmock, 2) == ["+a Pending", "synced"]


async def test_a_scripted_stream_cut_in_a_line_then_gone_then_listed_again(kmock: Any) -> None:
    first = {"metadata": {"resourceVersion": "10"}, "items": [pod("a", 5), pod("b", 6)]}
    second = {"metadata": {"resourceVersion": "30"}, "items": [pod("b", 21, "Running"), pod("c", 22)]}
    line = event("MODIFIED", pod("a", 11, "Running"))
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    pods = kmocks.resource("v1/pods")
    kmock["list", pods][:1] << first
    kmock["list", pods][1:] << second
    kmock["watch", pods][:1] << (line[:40],)
    kmock["watch", pods][1:2] << (line, event("BOOKMARK", {"metadata": {"resourceVersion": "20"}}))
    kmock["watch", pods][2:3] << (event("ERROR", gone),)
    replayed = event("ADDED", pod("a", 5)) + event("DELETED", pod("b", 7))  # of a server that lags behind
    kmock["watch", pods][3:] << (replayed, event("ADDED", pod("d", 31)))
    assert await read(kmock, 8) == [
        "+a Pending",
        "+b Pending",
        "synced",
        "~a Running",
        "~b Running",
        "+c Pending",
        "-a",
        "+d Pending",
    ]
    versions = [request.params.get("resourceVersion") for request in kmock["watch", pods]]
    assert versions[:4] == ["10", "10", "20", "30"]
