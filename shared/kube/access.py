"""What a service asks before it works with a cluster: is it recent enough, and what RBAC lets us do."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from shared.errors import Unsupported
from shared.kube.client import Cluster
from shared.kube.errors import Asked
from shared.kube.resources import SELF_ACCESS_REVIEWS, Resource
from shared.kube.sending import decode

OLDEST: Final = (1, 28)


class Right(msgspec.Struct, frozen=True, kw_only=True):
    """Something that RBAC must allow us; no namespace: in the whole cluster."""

    verb: str
    resource: Resource
    namespace: str | None = None
    subresource: str = ""

    def __str__(self) -> str:
        plural = f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural
        what = f"{plural}.{self.resource.group}" if self.resource.group else plural
        return f"{self.verb} {what} " + (f"in namespace {self.namespace}" if self.namespace else "in all namespaces")


class _Version(msgspec.Struct, frozen=True, rename="camel"):
    major: str
    minor: str
    git_version: str = ""


class _Verdict(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Verdict


async def server_version(cluster: Cluster) -> tuple[int, int]:
    """The server's version, such as ``(1, 36)``.

    Raises:
        Unsupported: it is older than what elearn works with.
        Unavailable: there is no answer.
    """
    asked = Asked(verb="tell its version")
    told = decode((await cluster.send("GET", "/version", asked)).body, _Version, asked)
    version = int(told.major), int("".join(filter(str.isdigit, told.minor)) or 0)
    if version < OLDEST:
        raise Unsupported(f"this cluster runs Kubernetes {told.git_version}: elearn needs 1.{OLDEST[1]} or later")
    return version


async def missing_rights(cluster: Cluster, rights: Sequence[Right]) -> list[Right]:
    """Those of the rights that RBAC does not give us."""
    verdicts = await asyncio.gather(*(_allowed(cluster, right) for right in rights))
    return [right for right, allowed in zip(rights, verdicts, strict=True) if not allowed]


async def _allowed(cluster: Cluster, right: Right) -> bool:
    review = {
        "apiVersion": SELF_ACCESS_REVIEWS.api_version,
        "kind": SELF_ACCESS_REVIEWS.kind,
        "spec": {
            "resourceAttributes": {
                "verb": right.verb,
                "group": right.resource.group,
                "resource": right.resource.plural,
                "subresource": right.subresource,
                "namespace": right.namespace or "",
            }
        },
    }
    asked = Asked(verb="create", plural=SELF_ACCESS_REVIEWS.plural, group=SELF_ACCESS_REVIEWS.group)
    answer = await cluster.send("POST", SELF_ACCESS_REVIEWS.path(), asked, body=msgspec.json.encode(review))
    return decode(answer.body, _Review, asked).status.allowed
