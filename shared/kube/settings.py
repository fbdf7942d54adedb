"""How a service finds its cluster, from the environment."""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from shared.contracts.common import NAME_PATTERN
from shared.errors import Unsupported
from shared.kube.names import (
    DEFAULT_INSTALLATION,
    LONGEST_PROJECT,
    PROJECT_NAMESPACE,
    pattern_problem,
    project_namespace,
)


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Read by :func:`shared.settings.load` from ``ELEARN_<FIELD>``.

    Attributes:
        kubeconfig: the kubeconfig, or several with colons between them; not set: ``KUBECONFIG``, then
            ``~/.kube/config``, then the pod that we run in. A proxy is its ``proxy-url``, else what ``HTTPS_PROXY`` and
            ``NO_PROXY`` say, networks such as 10.0.0.0/8 among it.
        kubernetes_context: a context of it; not set: its current one.
        kubernetes_namespace: where our objects go; not set: the context's, or the pod's own.
        kubernetes_installation: tells several elearns in one cluster apart; objects of others are left alone.
        kubernetes_timeout: seconds that one request to the API may take.
        kubernetes_patience: seconds after which repeating a failing request is given up.
        kubernetes_requests: how many requests may be under way at once, watches and logs not counted.
    """

    kubeconfig: str = ""
    kubernetes_context: str = ""
    kubernetes_namespace: str = ""
    kubernetes_installation: str = DEFAULT_INSTALLATION
    kubernetes_timeout: float = 15.0
    kubernetes_patience: float = 20.0
    kubernetes_requests: int = 32


class ProjectSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where projects lie in the cluster and how elearn's own pods run there: read by every room alike.

    Attributes:
        kubernetes_project_namespace: name of a project's namespace; ``{project}`` stands for the project's name, and
            23 characters besides are the most that fit.
        kubernetes_create_namespaces: make a project's namespace where it is missing.
        kubernetes_projects: the only projects there are: their namespaces alone are looked into, and rights are needed
            in no others. None named: any project, and rights in all namespaces.
        kubernetes_image: elearn's own image, for save jobs and whatever else works on files.
        kubernetes_image_pull_policy: when nodes pull it.
        kubernetes_image_pull_secrets: Secrets in the project's namespace that may pull it.
        kubernetes_run_as: user and group of our own pods; files that they make are its own.
        kubernetes_root_projects: projects whose tasks may run as the user that their image names, root too, as images
            of TensorFlow do by themselves; ``*``: all of them. The others' run as ``kubernetes_run_as``.
        kubernetes_cpu_limits: give every pod a CPU limit, equal to what it asks for: a namespace with a quota on
            ``limits.cpu`` takes no other. Pods may use what their node has to spare otherwise.

    Raises:
        Unsupported: not every project would get a namespace, or one is named that there can't be.
    """

    kubernetes_project_namespace: str = PROJECT_NAMESPACE
    kubernetes_create_namespaces: bool = True
    kubernetes_projects: tuple[str, ...] = ()
    kubernetes_image: str = "elearn:dev"
    kubernetes_image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    kubernetes_image_pull_secrets: tuple[str, ...] = ()
    kubernetes_run_as: int = 10001
    kubernetes_root_projects: tuple[str, ...] = ()
    kubernetes_cpu_limits: bool = False

    def __post_init__(self) -> None:
        if problem := pattern_problem(self.kubernetes_project_namespace):
            raise Unsupported(f"ELEARN_KUBERNETES_PROJECT_NAMESPACE: {problem}")
        _check_projects("ELEARN_KUBERNETES_PROJECTS", self.kubernetes_projects)
        _check_projects(
            "ELEARN_KUBERNETES_ROOT_PROJECTS", [each for each in self.kubernetes_root_projects if each != "*"]
        )

    def namespace_of(self, project: str) -> str:
        """The namespace of a project."""
        return project_namespace(project, self.kubernetes_project_namespace)

    def may_be_root(self, project: str) -> bool:
        """Whether a project's tasks may run as root."""
        return "*" in self.kubernetes_root_projects or project in self.kubernetes_root_projects

    def pod_security(self, project: str) -> Literal["restricted", "baseline"]:
        """What of the cluster's pod security standards holds in the namespace of a project."""
        shared = self.one_namespace is not None and bool(self.kubernetes_root_projects)
        return "baseline" if shared or self.may_be_root(project) else "restricted"

    @property
    def one_namespace(self) -> str | None:
        """The namespace that all projects share, or None where each has its own."""
        pattern = self.kubernetes_project_namespace
        return None if "{project}" in pattern else pattern

    @property
    def places(self) -> tuple[str | None, ...]:
        """The namespaces in which our objects may lie; None: all there are."""
        if self.one_namespace is not None:
            return (self.one_namespace,)
        return tuple(self.namespace_of(project) for project in self.kubernetes_projects) or (None,)


def _check_projects(variable: str, projects: Iterable[str]) -> None:
    for project in projects:
        if not re.fullmatch(NAME_PATTERN, project):
            raise Unsupported(
                f"{variable}: {project!r} can't be a project: its name is lower-case letters, digits and dashes,"
                f" {LONGEST_PROJECT} characters at the most"
            )
