"""What is handed out, to whom, and in which words it is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Internal
from shared.local.book import Book
from shared.local.gpus import Gpu
from shared.local.ledger import Grant, Ledger, Request, Shortage, fits_ever
from shared.local.machine import Machine

GIB = 2**30


def gpus(count: int, prefix: str = "fake-") -> tuple[Gpu, ...]:
    return tuple(Gpu(index=n, uuid=f"{prefix}{n}", name="T", memory=GIB) for n in range(count))


MACHINE = Machine(cpu=4, memory=8 * GIB, gpus=gpus(4))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.json", MACHINE, Book(tmp_path / "book"))


def ask(*sizes: tuple[float, int, int]) -> list[Request]:
    return [Request(task=f"worker-{n}", cpu=cpu, memory=gib * GIB, gpus=gpu) for n, (cpu, gib, gpu) in enumerate(sizes)]


class TestAcquire:
    def test_gives_each_task_its_part(self, ledger: Ledger) -> None:
        grant = ledger.acquire("a", ask((1, 1, 1), (0.5, 2, 2), (0, 0, 0)))
        assert isinstance(grant, Grant)
        assert [(part.task, part.gpus) for part in grant.parts] == [
            ("worker-0", (0,)),
            ("worker-1", (1, 2)),
            ("worker-2", ()),
        ]
        now = ledger.snapshot()
        assert (now.free_cpu, now.free_memory, now.free_gpus) == (2.5, 5 * GIB, (3,))

    def test_is_all_or_nothing(self, ledger: Ledger) -> None:
        before = ledger.snapshot()
        assert isinstance(ledger.acquire("a", ask((1, 1, 3), (1, 1, 2))), Shortage)
        assert ledger.snapshot() == before

    def test_asking_again_gives_the_same(self, ledger: Ledger) -> None:
        first = ledger.acquire("a", ask((1, 1, 2)))
        assert ledger.acquire("a", ask((1, 1, 2))) == first
        assert ledger.snapshot().free_gpus == (2, 3)

    def test_another_service_sees_the_same_ledger(self, ledger: Ledger, tmp_path: Path) -> None:
        first = ledger.acquire("a", ask((1, 1, 2)))
        ledger.close()
        again = Ledger(tmp_path / "home" / "ledger.json", MACHINE, Book(tmp_path / "book"))
        assert again.acquire("a", ask((1, 1, 2))) == first
        assert again.snapshot().grants == (first,)

    def test_what_was_released_is_free_again(self, ledger: Ledger) -> None:
        ledger.acquire("a", ask((4, 8, 4)))
        assert ledger.release("a")
        assert not ledger.release("a")
        assert isinstance(ledger.acquire("b", ask((4, 8, 4))), Grant)

    def test_tenths_of_a_core_add_up(self, ledger: Ledger) -> None:
        for n in range(40):
            assert isinstance(ledger.acquire(str(n), ask((0.1, 0, 0))), Grant)
        assert isinstance(ledger.acquire("one more", ask((0.1, 0, 0))), Shortage)

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            ((0, 0, 2), "waiting for 2 GPUs: 3 of 4 in use by search/ctr-41"),
            ((0, 4, 0), "waiting for 4 GiB of memory: 5 GiB of 8 GiB in use by small/x-1, search/ctr-41"),
            ((1.5, 0, 0), "waiting for 1.5 CPUs: 3 of 4 in use by search/ctr-41, small/x-1"),
            ((9, 9, 9), "waiting for 9 GPUs: 3 of 4 in use by search/ctr-41"),
        ],
    )
    def test_says_what_it_waits_for_and_who_has_it(
        self, ledger: Ledger, wanted: tuple[float, int, int], words: str
    ) -> None:
        ledger.acquire("search/ctr-41", ask((2, 2, 3)))
        ledger.acquire("small/x-1", ask((1, 3, 0)))
        answer = ledger.acquire("new", ask(wanted))
        assert isinstance(answer, Shortage)
        assert answer.words() == words

    def test_names_no_more_than_three(self, ledger: Ledger) -> None:
        for n in range(4):
            ledger.acquire(f"p/{n}", ask((0, 0, 1)))
        answer = ledger.acquire("new", ask((0, 0, 1)))
        assert isinstance(answer, Shortage)
        assert answer.words() == "waiting for 1 GPU: 4 of 4 in use by p/0, p/1, p/2 and 1 more"

    def test_a_damaged_file_is_said_plainly(self, ledger: Ledger, tmp_path: Path) -> None:
        (tmp_path / "home" / "ledger.json").write_text("{")
        with pytest.raises(Internal, match=r"ledger\.json can't be read"):
            ledger.acquire("a", ask((1, 1, 1)))

    @given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3)), max_size=12))
    def test_no_gpu_is_ever_given_twice(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[int]]]
    ) -> None:
        folder = tmp_path_factory.mktemp("ledger")
        ledger = Ledger(folder / "ledger.json", MACHINE, Book(folder / "book"))
        held: dict[str, tuple[int, ...]] = {}
        for who, wanted in steps:
            owner = str(who)
            if owner in held:
                ledger.release(owner)
                del held[owner]
                continue
            answer = ledger.acquire(owner, ask(*((0, 0, count) for count in wanted)))
            if isinstance(answer, Grant):
                assert [len(part.gpus) for part in answer.parts] == wanted
                held[owner] = tuple(index for part in answer.parts for index in part.gpus)
            else:
                assert sum(wanted) > 4 - sum(map(len, held.values()))
            given_out = [index for indices in held.values() for index in indices]
            assert len(given_out) == len(set(given_out))
            assert set(ledger.snapshot().free_gpus) == set(range(4)) - set(given_out)
        ledger.close()


class TestFitsEver:
    @pytest.mark.parametrize(
        ("sizes", "words"),
        [
            ([(4, 8, 4)], None),
            ([(0.1, 0, 0)] * 40, None),
            ([(1, 1, 3), (1, 1, 2)], "5 GPUs in all will never fit: the most is 4"),
            ([(1, 5, 0), (1, 4, 0)], "9 GiB of memory in all will never fit: the most is 8 GiB"),
            ([(4.5, 1, 0)], "4.5 CPUs in all will never fit: the most is 4"),
        ],
    )
    def test_names_the_largest_that_would(self, sizes: list[tuple[float, int, int]], words: str | None) -> None:
        assert fits_ever(MACHINE, ask(*sizes)) == words

    def test_without_gpus(self) -> None:
        assert fits_ever(Machine(cpu=1, memory=1), ask((0, 0, 1))) == (
            "1 GPU in all will never fit: this machine has none"
        )


class TestSeveralHomes:
    REAL = Machine(cpu=4, memory=8 * GIB, gpus=gpus(2, "GPU-"))

    def homes(self, tmp_path: Path, machine: Machine) -> tuple[Ledger, Ledger]:
        return (
            Ledger(tmp_path / "one" / "ledger.json", machine, Book(tmp_path / "book")),
            Ledger(tmp_path / "two" / "ledger.json", machine, Book(tmp_path / "book")),
        )

    def test_never_share_a_real_gpu(self, tmp_path: Path) -> None:
        one, two = self.homes(tmp_path, self.REAL)
        first, second = one.acquire("a", ask((1, 1, 1))), two.acquire("b", ask((1, 1, 1)))
        assert isinstance(first, Grant)
        assert isinstance(second, Grant)
        assert first.parts[0].gpus != second.parts[0].gpus
        short = two.acquire("c", ask((1, 1, 1)))
        assert isinstance(short, Shortage)
        assert short.words() == "waiting for 1 GPU: 2 of 2 in use by b, a (another home)"
        one.release("a")
        assert isinstance(two.acquire("c", ask((1, 1, 1))), Grant)

    def test_a_home_that_died_holds_nothing(self, tmp_path: Path) -> None:
        one, two = self.homes(tmp_path, self.REAL)
        one.acquire("a", ask((1, 1, 2)))
        assert two.snapshot().free_gpus == ()
        one.close()
        assert two.snapshot().free_gpus == (0, 1)

    def test_a_claim_from_before_the_machine_restarted_is_void(self, tmp_path: Path) -> None:
        one, two = self.homes(tmp_path, self.REAL)
        one.acquire("a", ask((1, 1, 2)))
        path = tmp_path / "book" / "claims.json"
        claims = json.loads(path.read_text())
        path.write_text(json.dumps({name: {**claim, "boot": "before"} for name, claim in claims.items()}))
        assert two.snapshot().free_gpus == (0, 1)

    def test_fake_gpus_are_each_home_s_own(self, tmp_path: Path) -> None:
        one, two = self.homes(tmp_path, MACHINE)
        assert isinstance(one.acquire("a", ask((0, 0, 4))), Grant)
        assert isinstance(two.acquire("a", ask((0, 0, 4))), Grant)
