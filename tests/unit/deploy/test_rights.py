"""The roles hold what rights.yaml says, where the values ask for it; test_rights_of_rooms says what is needed."""

import pytest

from tests.support.chart import of_kind, rendered
from tests.support.kube_rights import rules_of, words_of

ROOMS = ("scheduler", "datastore", "registry", "serving")
ALL_CLAIMS = {"registry": ("storeClaims",)}


@pytest.mark.parametrize(
    ("values", "conditions"),
    [
        ((), ALL_CLAIMS),
        (("modelStore=claim:models",), {}),
        (("modelStore=nfs:files:/models",), {"registry": ("storeClaims", "storeVolumes")}),
        (("modelStore=host:/srv",), {"registry": ("storeClaims", "storeVolumes")}),
        (("env.ELEARN_KUBERNETES_NFS_OWN=files:/own",), {**ALL_CLAIMS, "datastore": ("ownShares",)}),
        (("services.datastore.env.ELEARN_KUBERNETES_NFS_OWN=f:/o",), {**ALL_CLAIMS, "datastore": ("ownShares",)}),
        (("services.registry.env.ELEARN_KUBERNETES_NFS_OWN=f:/o",), ALL_CLAIMS),
    ],
)
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("some", [False, True])
def test_roles_follow_the_values(
    some: bool, room: str, values: tuple[str, ...], conditions: dict[str, tuple[str, ...]]
) -> None:
    manifests = rendered(*values, *(["projects.only={search}"] if some else []))
    rules = rules_of(room, everywhere=not some, only=conditions.get(room, ()))
    given = {
        each["metadata"].get("namespace", ""): words_of(each["rules"])
        for each in of_kind(manifests, "Role", "ClusterRole")
        if each["metadata"]["name"].endswith(f"elearn-{room}")
    }
    wanted = {"": words_of(rules["cluster"])}
    if some:
        wanted["elearn-search"] = words_of(rules["projects"])
    else:
        wanted[""] |= words_of(rules["projects"])
    if rules["system"]:
        wanted["system-elearn"] = words_of(rules["system"])
    assert {place: words for place, words in given.items() if words} == {
        place: words for place, words in wanted.items() if words
    }
