"""A spec's errors by field, its tasks, its mounts, its TF_CONFIG: tables."""

import json
from typing import Any

import pytest

from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import Capabilities, claims_of
from services.scheduler.spec import find_output, plan_mounts, plan_tasks, spec_errors
from shared.contracts.datastore import ClaimVolume, LocalVolume, MountableDatastore
from shared.contracts.training import Mount, Role, Roles, Save, SecretKey
from tests.support.trainings import cluster, spec

LOCAL = Capabilities(images=False, volumes=frozenset({"local"}))
RELATIVE = Capabilities(absolute_mounts=False, absolute_mounts_missing="no namespaces here")


def errors(capabilities: Capabilities = LOCAL, **fields: Any) -> dict[str, str]:
    found = spec_errors(spec(**fields), TensorFlow(), capabilities)
    return {error.field: error.message for error in found}


def mount(path: str, datastore: str = "d", **fields: Any) -> Mount:
    return Mount(datastore=datastore, path=path, **fields)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"name": "a" * 36}, "name", "at most 35"),
        ({"command": (" ",)}, "command", "empty"),
        ({"command": ("a", "b\0")}, "command.1", "NUL"),
        ({"code": "sha256:abc"}, "code", "not the digest"),
        ({"env": {"ELEARN_ROLE": "x"}}, "env.ELEARN_ROLE", "set by elearn"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "env.CUDA_VISIBLE_DEVICES", "set by elearn"),
        ({"env": {"TF_CONFIG": "{}"}}, "env.TF_CONFIG", "set by elearn"),
        ({"env": {"A=B": "x"}}, "env.A=B", "not a legal name"),
        ({"env": {"A": "\0"}}, "env.A", "NUL"),
        ({"secrets": {"TF_CONFIG": SecretKey(name="s", key="k")}}, "secrets.TF_CONFIG", "set by elearn"),
        ({"secrets": {"A=B": SecretKey(name="s", key="k")}}, "secrets.A=B", "not a legal name"),
        ({"env": {"A": "x"}, "secrets": {"A": SecretKey(name="s", key="k")}}, "secrets.A", "env as well"),
        ({"secrets": {"A": SecretKey(name="../s", key="k")}}, "secrets.A.name", "no name of a secret"),
        ({"secrets": {"A": SecretKey(name="s", key="..")}}, "secrets.A.key", "no key of a secret"),
        ({"secrets": {"A": SecretKey(name="s", key="a/b")}}, "secrets.A.key", "no key of a secret"),
        ({"mounts": (mount("../x"),)}, "mounts.0.path", "leaves its directory"),
        ({"mounts": (mount("a/../../x"),)}, "mounts.0.path", "leaves its directory"),
        ({"mounts": (mount("."),)}, "mounts.0.path", "working directory itself"),
        ({"mounts": (mount(""),)}, "mounts.0.path", "relative path"),
        ({"mounts": (mount("/data/../etc"),)}, "mounts.0.path", "'..'"),
        ({"mounts": (mount("/usr"),)}, "mounts.0.path", "belongs to the system"),
        ({"mounts": (mount("/proc/x"),)}, "mounts.0.path", "belongs to the system"),
        ({"mounts": (mount("//"),)}, "mounts.0.path", "belongs to the system"),
        ({"mounts": (mount("a"), mount("./a/"))}, "mounts.1.path", "mounted already"),
        ({"mounts": (mount("a/b"), mount("a"))}, "mounts.1.path", "lie in each other"),
        ({"mounts": (mount("a", own=True, read_only=True),)}, "mounts.0.read_only", "exclude each other"),
        ({"mounts": (mount("a", sub_path="/x"),)}, "mounts.0.sub_path", "relative path"),
        ({"tensorboard": "out/logs"}, "tensorboard", "below a mount"),
        ({"tensorboard": "../x"}, "tensorboard", "leaves its directory"),
        ({"save": Save(model="m", path="out"), "mounts": (mount("data"),)}, "save.path", "below a mount"),
        (
            {"save": Save(model="m", path="data/x"), "mounts": (mount("data", read_only=True),)},
            "save.path",
            "read-only",
        ),
        ({"labels": {"team": "a b"}}, "labels.team", "not a legal label value"),
        ({"deadline": "2 fortnights"}, "deadline", "not a duration"),
        ({"deadline": 0}, "deadline", "out of range"),
        ({"roles": Roles(chief=Role(), master=Role())}, "roles.master", "old name of chief"),
        ({"roles": Roles(chief=Role(replicas=2))}, "roles.chief.replicas", "only one"),
        ({"roles": Roles(master=Role(replicas=2))}, "roles.chief.replicas", "only one"),
        ({"roles": cluster(evaluator=2)}, "roles.evaluator.replicas", "only one"),
        ({"roles": Roles(ps=Role())}, "roles", "name a chief"),
        ({"roles": Roles(worker=Role(cpu="lots"))}, "roles.worker.cpu", "not a number of CPUs"),
        ({"roles": Roles(worker=Role(cpu=0))}, "roles.worker.cpu", "more than 0"),
        ({"roles": Roles(worker=Role(memory="2X"))}, "roles.worker.memory", "not an amount"),
        ({"roles": Roles(worker=Role(gpus=8))}, "roles.worker.gpus_per_task", "together with gpus"),
        ({"roles": Roles(worker=Role(gpus_per_task=8))}, "roles.worker.gpus", "together with"),
        ({"roles": Roles(worker=Role(gpus=8, gpus_per_task=4, replicas=2))}, "roles.worker.replicas", "follows"),
        ({"roles": Roles(worker=Role(gpus=8, gpus_per_task=4, gpu=1))}, "roles.worker.gpu", "give one"),
        ({"roles": cluster(workers=5000)}, "roles", "at most 1000"),
    ],
)
def test_one_wrong_field(fields: dict[str, Any], field: str, words: str) -> None:
    found = errors(**fields)
    assert set(found) == {field}
    assert words in found[field]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"env": {"PATH": "/x", "_a1": ""}},
        {"mounts": (mount("a/b"), mount("a/c"), mount("/data"), mount("/home/me/data"))},
        {"mounts": (mount("ab"), mount("a"))},
        {"mounts": (mount("out"),), "tensorboard": "out", "save": Save(model="m", path="out/x/../y/..z")},
        {"deadline": "1h30m", "roles": Roles(master=Role(cpu="500m", memory="2Gi"))},
        {"roles": cluster(chief=0, workers=2, ps=1)},
        {"roles": cluster(workers=0, ps=0)},
        {"code": "sha256:" + "a" * 64},
    ],
)
def test_nothing_wrong(fields: dict[str, Any]) -> None:
    found = errors(**fields)
    assert set(found) <= {"save.path"}
    if "save" in fields:
        assert "must not contain '..'" in found["save.path"]


def test_what_the_cloud_can_t_do_is_refused_at_once() -> None:
    found = errors(RELATIVE, mounts=(mount("/data"),))
    assert found == {"mounts.0.path": "'/data': no namespaces here; use a path relative to the working directory"}


@pytest.mark.parametrize(
    ("roles", "names", "deciding"),
    [
        (Roles(), ["chief-0"], "chief-0"),
        (cluster(workers=0, ps=0), ["chief-0"], "chief-0"),
        (Roles(worker=Role(replicas=0), ps=Role(replicas=0)), ["chief-0"], "chief-0"),
        (Roles(master=Role(), worker=Role()), ["chief-0", "worker-0"], "chief-0"),
        (Roles(worker=Role(replicas=2)), ["worker-0", "worker-1"], "worker-0"),
        (Roles(evaluator=Role()), ["chief-0", "evaluator-0"], "chief-0"),
        (cluster(workers=1, ps=1), ["chief-0", "worker-0", "ps-0"], "chief-0"),
    ],
)
def test_tasks(roles: Roles, names: list[str], deciding: str) -> None:
    tasks = plan_tasks(spec(roles=roles), TensorFlow())
    assert [task.name for task in tasks] == names
    assert [task.name for task in tasks if task.decides] == [deciding]


def test_defaults_and_gpus_in_all() -> None:
    tasks = plan_tasks(spec(roles=Roles(worker=Role(gpus=100, gpus_per_task=8))), TensorFlow())
    assert [task.demand.gpu for task in tasks] == [8] * 12 + [4]
    assert (tasks[0].demand.cpu, tasks[0].demand.memory) == (0.25, 2**30)


@pytest.mark.parametrize(
    ("roles", "meaning"),
    [
        (
            cluster(workers=1, ps=1, evaluator=1),
            {"chief": "fail", "worker": "restart", "ps": "fail", "evaluator": "ignore"},
        ),
        (cluster(workers=1), {"chief": "fail", "worker": "fail"}),
    ],
)  # fmt: skip
def test_what_a_failure_means(roles: Roles, meaning: dict[str, str]) -> None:
    assert {task.role: task.on_failure for task in plan_tasks(spec(roles=roles), TensorFlow())} == meaning


def test_tf_config() -> None:
    framework = TensorFlow()
    addresses: Any = {"chief": ["a:1"], "worker": ["b:1", "b:2"], "evaluator": ["e:1"]}
    told = json.loads(framework.environment(addresses, "evaluator", 0)["TF_CONFIG"])
    assert told == {
        "cluster": {"chief": ["a:1"], "worker": ["b:1", "b:2"]},
        "task": {"type": "evaluator", "index": 0},
    }
    assert framework.environment({"chief": ["a:1"]}, "chief", 0) == {}
    words = framework.command(
        ["run", "{role}/{index}", "--w={worker_hosts}", "--p={ps_hosts}", "{x}{{role}}"], addresses, "worker", 1
    )
    assert words == ("run", "worker/1", "--w=b:1,b:2", "--p=", "{x}{worker}")


def resolved(name: str, *, read_only: bool = False, claim: bool = False) -> MountableDatastore:
    volume = ClaimVolume(claim_name=name) if claim else LocalVolume(path=f"/srv/{name}")
    return MountableDatastore(name=name, volume=volume, read_only=read_only)


def test_mounts_are_resolved() -> None:
    asked = spec(
        mounts=(
            mount("data/", "d", sub_path="a//b"),
            mount("out", "o", own=True),
            mount("deep", "o", own=True, sub_path="x"),
        )
    )
    datastores = {"d": resolved("d", read_only=True), "o": resolved("o")}
    mounts, wrong, notes = plan_mounts(asked, "t-3", datastores, LOCAL)
    assert not wrong
    assert [(each.path, each.folder, each.read_only) for each in mounts] == [
        ("data", "a/b", True),
        ("out", "t-3", False),
        ("deep", "x/t-3", False),
    ]
    assert notes == ["data/ can only be read: datastore d is read-only"]
    for path, place in {"out/export": ("o", "t-3/export"), "deep": ("o", "x/t-3"), "./data/c": ("d", "a/b/c")}.items():
        found = find_output(mounts, path)
        assert found is not None
        assert (found[0].datastore, found[1]) == place
    assert find_output(mounts, "output") is None


@pytest.mark.parametrize(("workers", "told"), [(0, False), (2, True)])
def test_what_one_machine_alone_can_mount_is_told_where_there_are_several_tasks(workers: int, told: bool) -> None:
    single = MountableDatastore(
        name="o", volume=ClaimVolume(claim_name="o", namespace="n", single_node=True), read_only=False
    )
    datastores = {"d": resolved("d", claim=True), "o": single}
    roles = Roles(chief=Role(), worker=Role(replicas=workers))
    asked = spec(mounts=(mount("data", "d"), mount("out", "o"), mount("more", "o")), roles=roles)
    mounts, _, notes = plan_mounts(asked, "t-1", datastores, Capabilities())
    assert claims_of(mounts) == ("n/o",)
    words = "all 3 tasks must find room on one machine, as datastore o is on a claim that one machine alone can mount"
    assert notes == ([words] if told else [])


@pytest.mark.parametrize(
    ("fields", "datastore", "field"),
    [
        ({"mounts": (mount("a", own=True),)}, resolved("d", read_only=True), "mounts.0.own"),
        ({"mounts": (mount("a"),)}, resolved("d", claim=True), "mounts.0.datastore"),
        (
            {"mounts": (mount("a"),), "save": Save(model="m", path="a/x")},
            resolved("d", read_only=True),
            "save.path",
        ),
    ],
)
def test_what_a_datastore_forbids(fields: dict[str, Any], datastore: MountableDatastore, field: str) -> None:
    _, wrong, _ = plan_mounts(spec(**fields), "t-1", {"d": datastore}, LOCAL)
    assert [error.field for error in wrong] == [field]
