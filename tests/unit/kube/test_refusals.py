"""What of the cluster's refusals passes by itself and what does not, in the words of Kubernetes."""

import pytest

from services.scheduler.cloud.kubernetes.refusals import is_for_good
from tests.support.kube_attempts import FAIL, Story, at

POD = 'FailedCreate: Error creating: pods "t-worker-0-x7k2p" is forbidden:'
POLICY = (
    'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "task" must set'
    " securityContext.allowPrivilegeEscalation=false), seccompProfile (pod or container"
)
BELOW_REQUEST = (
    'FailedCreate: Error creating: Pod "t-worker-0-x7k2p" is invalid: spec.containers[0].resources.requests: Invalid'
    ' value: "4": must be less than or equal to cpu limit of 500m'
)
USED_UP = "exceeded quota: compute, requested: requests.cpu=4, used: requests.cpu=14, limited: requests.cpu=16"


@pytest.mark.parametrize(
    "said",
    [
        f"{POD} maximum cpu usage per Container is 2, but limit is 4",
        f"{POD} [maximum memory usage per Pod is 1Gi, but limit is 2Gi, maximum cpu usage per Pod is 1, but no limit is"
        " specified]",
        f"{POD} minimum memory usage per Container is 1Gi, but request is 512Mi",
        f"{POD} cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
        BELOW_REQUEST,
        f"{POD} failed quota: compute: must specify limits.cpu for: prepare,task",
        f"{POD} failed quota: compute: must specify limits.cpu",
        f"{POD} insufficient quota to match these scopes: [{{PriorityClass In [high]}}]",
        f"{POD} {POLICY}",
        f"{POD} no PriorityClass with name high was found",
        f"{POD} ValidatingAdmissionPolicy 'images' with binding 'images' denied request: only our own registry",
        'FailedCreate: Error creating: admission webhook "validate.kyverno.svc-fail" denied the request: resource Pod/'
        "elearn-p/ was blocked due to the following policies",
        'FailedCreate: Error creating: admission webhook "images.example.org" denied the request without explanation',
    ],
)
def test_what_is_refused_for_good(said: str) -> None:
    assert is_for_good(said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        f"{POD} {USED_UP}",
        f"{POD} status unknown for quota: compute, resources: limits.memory,requests.cpu",
        f"{POD} unable to create new content in namespace elearn-p because it is being terminated",
        f'{POD} error looking up service account elearn-p/elearn-task: serviceaccount "elearn-task" not found',
        f"{POD} not yet ready to handle request",
        f'{POD} Post "https://images.example.org/": dial tcp 10.0.0.7:443: connect: connection refused',
        'FailedCreate: Error creating: Internal error occurred: failed calling webhook "validate.kyverno.svc-fail":'
        ' failed to call webhook: Post "https://kyverno-svc.kyverno.svc:443/validate/fail": context deadline exceeded',
        'FailedCreate: Error creating: Operation cannot be fulfilled on resourcequotas "compute": the object has been'
        " modified; please apply your changes to the latest version and try again",
        "FailedCreate: Error creating: Timeout: request did not complete within requested timeout",
        "BackoffLimitExceeded: Job has reached the specified backoff limit; a name is invalid",
    ],
)
def test_what_may_pass(said: str) -> None:
    assert not is_for_good(said)


def told(said: str, *, asked: float = 4) -> Story:
    story = Story(FAIL)
    story.one(0)
    (question,) = story.attempts.questions(at(asked), 10)
    story.attempts.answer(question, said)
    return story


def test_what_is_refused_for_good_fails_in_the_clusters_words() -> None:
    story = told(BELOW_REQUEST)
    assert story.one(5).state == "pending"
    assert story.attempts.next_look() == at(300)
    assert story.sure(299).state == "pending"
    task = story.sure(300)
    assert (task.state, task.started_at) == ("failed", None), "what never ran is not tried again"
    assert "must be less than or equal to cpu limit of 500m (for 5 min)" in task.reason


def test_what_passes_is_waited_for_before_the_attempt_is_put_off() -> None:
    story = told(f"{POD} {USED_UP}")
    assert story.sure(599).state == "pending"
    assert story.sure(600).state == "lost"


def test_a_refusal_that_was_heard_of_late_gets_a_minute() -> None:
    """A webhook that was away, or a quota that was used up, may say something else for once."""
    story = told(f"{POD} {USED_UP}")
    story.one(5)
    (question,) = story.attempts.questions(at(500), 10)
    story.attempts.answer(question, BELOW_REQUEST)
    assert story.one(500).state == "pending"
    assert story.attempts.next_look() == at(560)
    assert story.sure(559).state == "pending"
    assert story.sure(560).state == "failed"
