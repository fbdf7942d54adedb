"""Why the cluster makes no pod of a Job, as its events say it: for now, or for good. Pure.

for good    a limit range, pod security, an admission webhook or policy, a quota on what pods do not name
for now     a quota that is used up, a namespace that ends, something that decides over pods and is away
"""

import re
from typing import Final

_NOT_MADE: Final = "FailedCreate"
_REFUSED: Final = re.compile(r"\bis (forbidden|invalid)\b|\bdenied the request\b")
_PASSES: Final = re.compile(
    r"exceeded quota|status unknown for quota|being terminated|not yet ready to handle request"
    r"|looking up service account|failed calling webhook|connection refused|timed out|deadline exceeded|dial tcp"
)
"""Among it a missing ServiceAccount: the next attempt makes it anew."""


def is_for_good(said: str) -> bool:
    """Whether the cluster will refuse the next try as well, unless somebody changes the pod or the rules.

    Args:
        said: reason and message of the last warning about a Job.
    """
    return said.startswith(_NOT_MADE) and bool(_REFUSED.search(said)) and not _PASSES.search(said)
