"""``elearn queue``, ``usage``, ``cluster``: who waits, what is held, what there is."""

from elearn.cli.options import Format, Output, Project, connected
from elearn.cli.output import age, details, show, show_list, size, span


def queue(project: Project = None, output: Output = Format.table) -> None:
    """Trainings that wait, in their order, and what for."""
    with connected(project) as client:
        show_list(
            output,
            client.queue(),
            ("#", "name", "priority", "cpu", "memory", "gpu", "waits", "reason"),
            lambda each: (
                each.position,
                each.name,
                each.priority,
                each.cpu,
                size(each.memory),
                each.gpu,
                age(each.queued_at),
                each.reason,
            ),
            "nothing is queued",
        )


def usage(project: Project = None, output: Output = Format.table) -> None:
    """What the project's trainings hold now, and have held so far."""
    with connected(project) as client:
        used = client.usage()
    if not show(output, used):
        details(
            (
                ("Project", used.project),
                ("Running", used.running),
                ("Queued", used.queued),
                ("CPU", used.cpu),
                ("Memory", size(used.memory)),
                ("GPU", used.gpu),
                ("CPU time", span(used.cpu_seconds)),
                ("GPU time", span(used.gpu_seconds)),
            )
        )


def cluster(output: Output = Format.table) -> None:
    """The machines: what they have and what is handed out."""
    with connected(None) as client:
        found = client.cluster()
    if show(output, found):
        return
    show_list(
        output,
        found.nodes,
        ("node", "cpu", "memory", "gpu", "gpu type"),
        lambda node: (
            node.name,
            f"{node.cpu_used:g} of {node.cpu:g}",
            f"{size(node.memory_used)} of {size(node.memory)}",
            f"{node.gpu_used} of {node.gpu}",
            node.gpu_type,
        ),
        f"the {found.cloud} cloud has no machine",
    )
