"""A few kills during writes, as `make kills` runs them, and the detection of lost or doubled writes."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.service import Service
from tests.histories.scene import memory
from tests.kills.report import plain, table
from tests.kills.run import lives, run
from tests.kills.victims import KINDS
from tests.kills.writers import PROJECT
from tumbler_server.clock import NEVER


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_few_kills(kind: str, new_database: Callable[[str], str]) -> None:
    """Whatever is killed, and when, each acknowledged write exists once, and the audit finds no problem."""
    with memory() as folder:
        url = new_database(kind) if kind == "postgresql" else ""
        done = run(kind, folder, url, kills=2, writes=60, seed=1)
    assert done.findings.examples == []
    assert done.problems == []
    told = plain(done)
    assert told["kills"] == dict.fromkeys(KINDS, 2)
    assert told["writes"] >= 60
    assert told["interrupted"] > 0
    assert told["audit"].startswith("ok")
    assert table([done]).row_count == 1


def test_interrupted() -> None:
    """An interrupted run reports the interruption and checks what was done until then."""

    def interrupt(_: str, killed: int, __: int) -> None:
        if killed == 2:
            raise KeyboardInterrupt

    with memory() as folder:
        done = run("sqlite", folder, "", kills=2, writes=60, seed=1, progress=interrupt)
    assert done.interrupted
    assert done.findings.examples == []
    assert done.problems == ["2 of 6 kills were made"]
    assert len(done.history.writes) >= 20


def test_what_was_lost_or_doubled_is_noticed() -> None:
    """A run without kills reports lost acknowledged writes and changes without a request."""
    forgotten = []

    def harm(service: Service) -> None:
        ((name, key_id),) = service.read("SELECT name, id FROM api_key WHERE revoke_time <> ? LIMIT 1", NEVER)
        # A key without a schedule: SetActive can announce a rotation a second time.
        ((other,),) = service.read(
            "SELECT MIN(id) FROM api_key WHERE active AND revoke_time = ? AND replaced_by_key_id = '' AND name LIKE ? "
            "AND rotation_interval = 0",
            *(NEVER, f"{PROJECT}%"),
        )
        ((event,),) = service.read("SELECT MAX(revision) FROM event WHERE type = 2")
        service.create(project_id=f"{PROJECT}0", name=name)
        service.set_active(other, active=False)
        service.set_active(other, active=True)
        service.tamper(
            f"UPDATE api_key SET revoke_time = {NEVER} WHERE id = '{key_id}'",  # noqa: S608 - read just now
            f"DELETE FROM event WHERE revision = {event}",  # noqa: S608 - likewise
        )
        forgotten.extend([key_id, other, event])

    with memory() as folder:
        done = run("sqlite", folder, "", kills=0, writes=150, seed=1, before_checking=harm)
    revived, switched, event = forgotten
    # Lost: one event. Doubled: a key and its event, and two SetActives.
    assert (done.findings.lost, done.findings.doubled) == (1, 4)
    told = "\n".join(done.findings.examples)
    assert f"lost: Event(revision={event}" in told
    assert f"key {revived}: its revocation was undone" in told
    assert f"the secret of key {revived} is" in told
    assert f"'ACTIVATED', key_id='{switched}'" in told
    assert any(problem.startswith("audit verify") for problem in done.problems)


@pytest.mark.parametrize("kills", range(1, 6))
def test_lives(kills: int) -> None:
    """Each kind of process is killed ``kills`` times, workers only if there are two, and each life ends with a kill."""
    planned = lives(kills, random.Random(kills))  # noqa: S311 - no secret
    assert Counter(kind for life in planned for kind in life.kills) == dict.fromkeys(KINDS, kills)
    assert all(life.workers == 2 for life in planned if "worker" in life.kills)
    assert all(life.kills[-1] == "server" for life in planned)
