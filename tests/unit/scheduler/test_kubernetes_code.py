"""How code gets to pods: what the Secrets hold, and tokens."""

import base64
import gzip
import random
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import parse_qs, urlsplit

import pytest

from services.scheduler.cloud.kubernetes.code import MOST_BYTES, SECRET_BYTES, CodeDelivery, code_secrets
from services.scheduler.cloud.kubernetes.code_tokens import Claim, CodeTokens
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import Launch
from services.scheduler.errors import CannotLaunch, NoSuchCode
from shared.errors import Unsupported
from tests.support.kube import assert_valid
from tests.support.trainings import replace, spec

DIGEST = f"sha256:{'0' * 64}"
LAUNCH = Launch(project="p", name="t-1", attempt=2, spec=spec(code=DIGEST), plan=(), mounts=())
URL = TrainingOptions(kubernetes_code_url="http://elearn-scheduler.elearn:8083/")
CLAIM = Claim(project="p", digest=DIGEST, training="t-1", attempt=2)
OWNER: dict[str, object] = {"apiVersion": "v1", "kind": "Service", "name": "s", "uid": "u"}


def noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


class Archives:
    def __init__(self, archives: Mapping[str, bytes]) -> None:
        self._archives = archives

    async def size(self, project: str, digest: str) -> int:
        if digest not in self._archives:
            raise NoSuchCode(project, digest)
        return len(self._archives[digest])

    async def parts(self, project: str, digest: str) -> AsyncGenerator[bytes, None]:
        await self.size(project, digest)
        data = self._archives[digest]
        for start in range(0, len(data), 2**19):
            yield data[start : start + 2**19]


async def key() -> bytes:
    return b"k" * 32


def delivery(archive: bytes | None = None, options: TrainingOptions | None = None) -> CodeDelivery:
    archives = Archives({} if archive is None else {DIGEST: archive})
    return CodeDelivery(options or TrainingOptions(), archives, CodeTokens(key).sign)


async def test_compressed_code_is_cut_as_it_is() -> None:
    archive = gzip.compress(noise(3_000_000))
    contents = await delivery(archive).contents(LAUNCH)
    assert [list(content) for content in contents] == [[f"part-0{number}"] for number in range(5)]
    assert b"".join(data for content in contents for data in content.values()) == archive
    assert max(len(data) for content in contents for data in content.values()) == SECRET_BYTES


async def test_plain_code_is_compressed_and_alike_each_time() -> None:
    plain = noise(1000) * 9000
    contents = await delivery(plain).contents(LAUNCH)
    assert gzip.decompress(contents[0]["part-00"]) == plain
    assert await delivery(plain).contents(LAUNCH) == contents


async def test_no_code_is_no_secret() -> None:
    assert await delivery().contents(replace(LAUNCH, spec=spec())) == ()


@pytest.mark.parametrize("archive", [b"\x1f\x8b" + noise(MOST_BYTES), noise(MOST_BYTES + 1)])
async def test_code_too_large_for_secrets_is_refused_with_the_way_out(archive: bytes) -> None:
    with pytest.raises(CannotLaunch, match=r"6,291,45[67].*\.elearnignore.*ELEARN_KUBERNETES_CODE_URL") as refused:
        await delivery(archive).contents(LAUNCH)
    assert f"{len(archive):,} bytes" in refused.value.detail


async def test_code_that_is_gone_can_not_be_launched() -> None:
    with pytest.raises(CannotLaunch, match="no archive of code"):
        await delivery().contents(LAUNCH)


@pytest.mark.parametrize(
    ("archive", "options", "refused"),
    [
        (b"\x1f\x8b" + noise(MOST_BYTES), TrainingOptions(), True),
        (b"\x1f\x8b" + noise(MOST_BYTES), URL, False),
        (b"\x1f\x8b" + noise(MOST_BYTES - 2), TrainingOptions(), False),
        (noise(1000) * 9000, TrainingOptions(), False),
        (None, TrainingOptions(), False),
    ],
)
async def test_what_a_size_tells_is_told_at_submit(
    archive: bytes | None, options: TrainingOptions, refused: bool
) -> None:
    errors = await delivery(archive, options).examine("p", spec(code=DIGEST))
    assert [error.field for error in errors] == ["code"] * refused


async def test_with_a_code_server_the_secret_says_where() -> None:
    (content,) = await delivery(options=URL).contents(LAUNCH)
    url = urlsplit(content["url"].decode())
    assert f"{url.scheme}://{url.netloc}{url.path}" == (
        f"http://elearn-scheduler.elearn:8083/code/p/sha256%3A{'0' * 64}"
    )
    token = await CodeTokens(key).sign(CLAIM)
    assert parse_qs(url.query) == {"training": ["t-1"], "attempt": ["2"], "token": [token]}


@pytest.mark.parametrize("url", ["elearn:8083", "ftp://elearn", "http://", "http://elearn:99999", "http://e?x=1", "x"])
def test_what_is_no_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(Unsupported, match=r"ELEARN_KUBERNETES_CODE_URL: '.*' does not look like"):
        delivery(options=TrainingOptions(kubernetes_code_url=url))


async def test_a_token_is_for_one_attempt_and_one_archive() -> None:
    tokens = CodeTokens(key)
    token = await tokens.sign(CLAIM)
    assert await tokens.is_valid(CLAIM, token)
    for change in ({"project": "q"}, {"digest": "sha256:1"}, {"training": "t-2"}, {"attempt": 3}):
        assert not await tokens.is_valid(replace(CLAIM, **change), token)
    for wrong in ("", token[:-1], token.upper(), "é", "\udc80"):
        assert not await tokens.is_valid(CLAIM, wrong)


async def test_another_key_makes_other_tokens() -> None:
    async def other() -> bytes:
        return b"o" * 32

    assert not await CodeTokens(other).is_valid(CLAIM, await CodeTokens(key).sign(CLAIM))


async def test_secrets_are_legal_and_hold_what_they_should() -> None:
    contents = await delivery(gzip.compress(noise(800_000))).contents(LAUNCH)
    made = code_secrets("s-code", contents, namespace="elearn-p", labels={"elearn.dev/work": "training"}, owner=OWNER)
    assert [secret.name for secret in made] == ["s-code-0", "s-code-1"]
    assert_valid(*(secret.manifest for secret in made))
    manifest = made[1].manifest
    assert manifest["immutable"] is True
    assert manifest["data"] == {"part-01": base64.b64encode(contents[1]["part-01"]).decode()}
