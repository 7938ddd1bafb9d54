"""Guards the watch over ranks: nobody is left running, and what failed first is told, not what followed."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from shardwatt.errors import CellFailure, DoesNotFit, Reason
from shardwatt.recordfiles import write
from shardwatt.run import watch
from shardwatt.run.exchange import RankEnd, RankStart, rank_end_file, rank_start_file
from shardwatt.run.launch import RankExit
from still_clock import StillClock

NODE = "host0"


class Ranks:
    """A group of ranks that are gone when a test says so."""

    def __init__(self) -> None:
        self.gone: dict[int, RankExit] = {}
        self.printed = ""

    def exits(self) -> dict[int, RankExit]:
        return dict(self.gone)

    def said(self) -> str:
        return self.printed

    def end(self) -> None:
        raise AssertionError("they are the crew's to end")


class Watched:
    """A cell under watch; `then` holds what happens after each look at its ranks."""

    def __init__(self, work: Path, ranks: int) -> None:
        self.work = work
        self.ranks = ranks
        self.group = Ranks()
        self.then: list[Callable[[], None]] = []
        self.looks = 0
        for rank in range(ranks):
            write(RankStart(rank=rank, node=NODE, pid=1), rank_start_file(work, rank))

    def say(self, rank: int, reason: Reason | None = None, *, does_not_fit: bool = False) -> None:
        """Write a rank's last word, and let it go."""
        end = RankEnd(
            rank=rank,
            node=NODE,
            ok=reason is None and not does_not_fit,
            reason=reason,
            does_not_fit=does_not_fit,
            message=f"words of rank {rank}",
        )
        write(end, rank_end_file(self.work, rank))
        self.group.gone[rank] = RankExit()

    def die(self, rank: int, known: RankExit | None = None) -> None:
        self.group.gone[rank] = known or RankExit()

    def attend(self, start_timeout_s: float = 60) -> list[RankEnd]:
        def look() -> None:
            assert self.looks < 10_000, "waited for ever"
            self.looks += 1
            if self.then:
                self.then.pop(0)()

        return watch.attend(
            self.group,
            self.work,
            self.work,
            ranks=self.ranks,
            start_timeout_s=start_timeout_s,
            each_look=look,
        )

    def failure(self) -> CellFailure:
        with pytest.raises(CellFailure) as raised:
            self.attend()
        return raised.value


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return _watched(tmp_path, monkeypatch, 2)


@pytest.fixture
def trio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return _watched(tmp_path, monkeypatch, 3)


def _watched(work: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> Watched:
    monkeypatch.setattr(watch, "time", StillClock())
    return Watched(work, ranks)


def test_ends_are_returned_in_order_and_ranks_may_stay_for_another_cell(pair: Watched) -> None:
    pair.then = [lambda: pair.say(1), lambda: pair.say(0)]
    assert [end.rank for end in pair.attend()] == [0, 1]
    assert pair.looks == 2


def test_a_killed_rank_is_named_not_the_one_that_lost_its_connection(pair: Watched) -> None:
    pair.say(0, Reason.RANK_DIED)
    pair.die(1)
    failure = pair.failure()
    assert (failure.reason, failure.rank) == (Reason.RANK_DIED, 1)
    assert failure.message.startswith(f"rank 1 on {NODE} ended without a word: ")
    assert failure.node == NODE


def test_what_the_launcher_knows_of_a_death_is_told(trio: Watched) -> None:
    """srun kills the others within the same second: the one with an exit code died first."""
    trio.die(0)
    trio.die(2, RankExit("v100-1", -9))
    failure = trio.failure()
    assert (failure.reason, failure.rank, failure.node, failure.exit_code) == (
        Reason.RANK_DIED,
        2,
        "v100-1",
        -9,
    )
    assert "(signal 9)" in failure.message


def test_a_rank_that_the_system_killed_for_memory_is_no_mere_death(pair: Watched) -> None:
    pair.die(1, RankExit("v100-1", -9, out_of_memory=True))
    assert pair.failure().reason is Reason.HOST_OOM


def test_a_death_that_is_seen_after_the_lost_connection_is_still_the_cause(pair: Watched) -> None:
    pair.then = [lambda: pair.say(0, Reason.RANK_DIED), lambda: None, lambda: pair.die(1)]
    failure = pair.failure()
    assert failure.rank == 1


def test_a_cause_told_within_the_grace_beats_what_followed_from_it(pair: Watched) -> None:
    pair.then = [
        lambda: pair.say(0, Reason.RANK_DIED),
        lambda: None,
        lambda: pair.say(1, Reason.BAD_CHECKPOINT),
    ]
    failure = pair.failure()
    assert (failure.reason, failure.rank, failure.node) == (Reason.BAD_CHECKPOINT, 1, NODE)
    assert failure.message == "words of rank 1"


def test_a_cause_beats_a_silent_death(pair: Watched) -> None:
    pair.die(0)
    pair.say(1, Reason.HOST_OOM)
    assert pair.failure().reason is Reason.HOST_OOM


def test_giving_up_waiting_comes_before_the_connections_that_it_closes(trio: Watched) -> None:
    """Rank 2 is stopped; rank 1 waits in vain and leaves; rank 0 loses its connection to rank 1."""
    trio.say(0, Reason.RANK_DIED)
    trio.say(1, Reason.COLLECTIVE_TIMEOUT)
    failure = trio.failure()
    assert (failure.reason, failure.rank) == (Reason.COLLECTIVE_TIMEOUT, 1)
    assert failure.message.endswith("; rank 2 had not ended")


def test_a_lost_connection_alone_is_told(pair: Watched) -> None:
    pair.say(0)
    pair.say(1, Reason.RANK_DIED)
    failure = pair.failure()
    assert (failure.reason, failure.message) == (Reason.RANK_DIED, "words of rank 1")


def test_an_unexpected_error_beside_a_silent_death_follows_from_it(pair: Watched) -> None:
    """A lost connection may come in words that nobody knows."""
    pair.say(0, Reason.INTERNAL_ERROR)
    pair.die(1)
    assert pair.failure().reason is Reason.RANK_DIED


def test_a_death_after_an_unexpected_error_follows_from_it(pair: Watched) -> None:
    """NCCL aborts the ranks whose peer has gone."""
    pair.then = [lambda: pair.say(0, Reason.INTERNAL_ERROR), lambda: None, lambda: pair.die(1)]
    failure = pair.failure()
    assert (failure.reason, failure.rank) == (Reason.INTERNAL_ERROR, 0)


@pytest.mark.parametrize("first", [0, 1])
def test_whether_srun_asked_a_rank_to_end_or_somebody_else_is_told_by_who_went_first(
    pair: Watched, first: int
) -> None:
    """srun asks the others to end, within the same second, once it has seen one die."""
    pair.say(0, Reason.CANCELLED)
    exits = {0: RankExit("v100-0", 1), 1: RankExit("v100-1", -9)}
    pair.group.gone = {rank: exits[rank] for rank in (first, 1 - first)}
    failure = pair.failure()
    expected = (Reason.RANK_DIED, 1) if first == 1 else (Reason.CANCELLED, 0)
    assert (failure.reason, failure.rank) == expected


def test_a_known_cause_beats_an_unexpected_error_of_a_lower_rank(pair: Watched) -> None:
    pair.say(0, Reason.INTERNAL_ERROR)
    pair.say(1, Reason.BAD_CHECKPOINT)
    assert pair.failure().rank == 1


def test_a_device_without_memory_is_no_failure_whatever_else_ended(trio: Watched) -> None:
    trio.die(0)
    trio.say(1, Reason.INTERNAL_ERROR)
    trio.say(2, does_not_fit=True)
    with pytest.raises(DoesNotFit, match=r"^rank 2 on host0: words of rank 2$"):
        trio.attend()


def test_ranks_that_do_not_begin_in_time_are_named(trio: Watched) -> None:
    for rank in (1, 2):
        rank_start_file(trio.work, rank).unlink()
    with pytest.raises(CellFailure, match=r"^ranks 1, 2 of 3 did not begin within 20 s") as raised:
        trio.attend(start_timeout_s=20)
    assert raised.value.reason is Reason.START_TIMEOUT
    assert trio.looks == pytest.approx(20 / watch.POLL_S, abs=2)


def test_ranks_that_have_begun_are_not_timed(pair: Watched) -> None:
    pair.then = [lambda: None] * 20 + [lambda: pair.say(0), lambda: pair.say(1)]
    assert len(pair.attend(start_timeout_s=watch.POLL_S)) == 2


def test_what_a_look_raises_comes_through(pair: Watched) -> None:
    def broken() -> None:
        raise KeyboardInterrupt

    pair.then = [broken]
    with pytest.raises(KeyboardInterrupt):
        pair.attend()


def test_a_torn_last_word_is_told_and_ends_the_others(pair: Watched) -> None:
    rank_end_file(pair.work, 1).write_text('{"schema_version": 1, "ra')
    failure = pair.failure()
    assert (failure.reason, failure.rank) == (Reason.INTERNAL_ERROR, 1)
    assert "rank-1.end.json" in failure.message


def test_what_a_silent_rank_printed_is_quoted(pair: Watched) -> None:
    pair.group.printed = "ImportError: no module named torch"
    pair.die(1)
    assert "ImportError: no module named torch" in pair.failure().message


def test_the_rank_that_srun_names_first_is_the_cause(trio: Watched) -> None:
    trio.group.gone = {
        2: RankExit("v100-1", -9, out_of_memory=True),
        0: RankExit("v100-0", -15),
        1: RankExit("v100-0", -15),
    }
    failure = trio.failure()
    assert (failure.reason, failure.rank, failure.node) == (Reason.HOST_OOM, 2, "v100-1")


def test_a_rank_that_nccls_watchdog_ended_waited_in_vain(pair: Watched) -> None:
    said = "[rank1]:[E] ProcessGroupNCCL: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    (pair.work / "rank-1.log").write_text(f"work folder: {pair.work.name}\n{said}")
    pair.die(1, RankExit("v100-1", -6))
    assert pair.failure().reason is Reason.COLLECTIVE_TIMEOUT


def test_what_nccl_told_a_rank_of_another_start_is_not_this_ones(pair: Watched) -> None:
    said = "[rank1]:[E] ProcessGroupNCCL: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    (pair.work / "rank-1.log").write_text(f"work folder: another\n{said}")
    pair.die(1, RankExit("v100-1", -6))
    assert pair.failure().reason is Reason.RANK_DIED


def test_a_rank_that_could_not_start_tells_its_own_words(pair: Watched) -> None:
    pair.group.printed = (
        "module: command not found\nenvironment line 1 failed\n"
        "srun: error: v100-1: task 1: Exited with exit code 78"
    )
    pair.die(1, RankExit("v100-1", 78))
    failure = pair.failure()
    assert failure.reason is Reason.CONFIGURATION
    assert failure.message.endswith("could not start: module: command not found; environment line 1 failed")


def test_silence_on_a_full_disk_is_the_disks(pair: Watched) -> None:
    pair.die(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Any file past this size: the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        failure = pair.failure()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure.reason is Reason.STORAGE
    assert "File too large" in failure.message
