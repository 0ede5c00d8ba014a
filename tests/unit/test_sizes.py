"""Estimated sizes of records and events: an upper bound as sent, and approximate in memory."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_record import FULL, PLAIN
from tumbler.decide import Code
from tumbler_server.clock import NEVER, SECOND
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.events.ring import Ring
from tumbler_server.keys import record, webhook_admin
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key
from tumbler_server.limits import ANSWER_BYTES
from tumbler_server.rpc import responses
from tumbler_server.secrets.opaque_tokens import OpaqueTokens
from tumbler_server.store.models import DeliveryRow
from tumbler_server.verify.cache import ProofCache
from tumbler_server.verify.verifier import Verdict, View

NOW = 1_893_456_000 * SECOND
TOKENS = OpaqueTokens(bytes(32), lambda _: "")


def row(number: int, scopes: list[str], metadata: dict[str, str], cidrs: list[str]) -> tuple[Any, ...]:
    """Return a key's row whose texts differ from every other key's."""
    key_id = f"{number:016}"
    facts = (json.dumps(scopes), json.dumps(metadata), json.dumps(cidrs), True)
    history = (NOW + number, "0" * 16, "op", NOW + number, NEVER, NOW + number, NEVER, 0, "", "", "", NEVER)
    schedule = (0, NEVER, 0, False, "", 0, False, False, 10_000_000 + number)
    names = ("acme", "live", f"key {number}", f"tmb_{key_id}_", f"owner {number}")
    return (key_id, *names, *facts, *history, *schedule, "hash", b"digest", "pepper")


SHAPES: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "bare": lambda number: row(number, [], {}, []),
    "usual": lambda number: row(number, [f"orders:{number}", "orders:write"], {"plan": f"gold {number}"}, []),
    "many scopes": lambda number: row(number, [f"o:{number}:{each}{'x' * 90}" for each in range(100)], {}, []),
    "small pairs": lambda number: row(number, [], {f"key {each}": f"{number}" for each in range(50)}, []),
    "large pairs": lambda number: row(number, [], {f"k{each}": "v" * 990 + str(number) for each in range(14)}, []),
    "Cyrillic": lambda number: row(number, [], {f"k{each}": "ж" * 450 + str(number) for each in range(14)}, []),
    "one sign": lambda number: row(number, [], {f"k{each}": "v" * 900 + f"🔑{number}" for each in range(14)}, []),
    "networks": lambda number: row(number, [], {}, [f"2001:db8:{each}:{number}::/64" for each in range(100)]),
}


class TestInMemory:
    """Sizes for the limits on memory."""

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    def test_records(self, shape: Callable[[int], tuple[Any, ...]]) -> None:
        """The estimate for a cached record, with its rendered form, is within 30 % of its size."""
        count = 400
        gc.collect()
        tracemalloc.start()
        cache = ProofCache(count)
        for number in range(count):
            key, _ = record.from_tuple(shape(number))
            cache.put(key, cache.tag(key.id), cache.generation)
            responses.verdict(Verdict(Code.VALID, NOW, View(77), key), 60 * SECOND, TOKENS.consistency)
        del key
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(cache) == count
        assert 0.7 < cache.memory / taken < 1.3

    @pytest.mark.parametrize("size", [10, 10_000])
    def test_events(self, size: int) -> None:
        """The estimate for an event in the ring is within 30 % of its size."""
        gc.collect()
        tracemalloc.start()
        ring = Ring(0)
        for number in range(1, 401):
            detail = json.dumps({"fields": "scopes", "scopes_added": f"{number}".rjust(size, "x")})
            names = (f"{number:016}", f"acme {number}", f"live {number}")
            made = (NOW + number, f"{number + 1:016}", f"billing {number}", detail, f"192.0.2.{number}", "")
            digests = (f"{number}".encode().ljust(156), f"{number}".encode().ljust(32))
            ring.extend([Event(number + 10_000, 2, *names, *made, *digests)])
        del detail, names, made, digests
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.7 < ring.memory / taken < 1.3

    def test_no_third_copy(self) -> None:
        """Rendering a record adds no UTF-8 copy to its strings."""
        key, _ = record.from_tuple(SHAPES["Cyrillic"](1))
        before = record.memory(key)
        responses.verdict(Verdict(Code.VALID, NOW, View(77), key), 60 * SECOND, TOKENS.consistency)
        assert record.memory(key) == before


class TestAsSent:
    """Sizes for the limit on an answer."""

    @pytest.mark.parametrize("key", [PLAIN, FULL, *(record.from_tuple(make(1))[0] for make in SHAPES.values())])
    def test_records(self, key: Key) -> None:
        """A record's message has at most the estimated bytes, and at most 2 KiB fewer."""
        assert 0 <= record.size(key) - responses.api_key(key, NOW).ByteSize() <= 2_048

    def test_the_largest_made_by_us(self) -> None:
        """The fields that the server adds fit in the estimate, however long the creator's name is."""
        key = Key(
            id="0" * 16, project_id="p", key_prefix="a" * 16 + "_" + "9" * 15 + "_" + "0" * 16 + "_",
            create_time=NOW + 1, created_by=log.Actor("0" * 16, "🔑" * 255), update_time=NOW + 1, expire_time=NOW + 1,
            last_used_time=NOW + 1, revoke_time=NOW + 1, revoke_reason=5, replaces_key_id="0" * 16,
            replaced_by_key_id="0" * 16, grace_expire_time=NOW + 1, grace_ends_on_first_use=True,
            rotation_interval=NOW + 1,
            rotation_next_time=NOW + 1, webhook_url="https://example.com/", revision=2**62,
        )  # fmt: skip
        assert responses.api_key(key, NOW).ByteSize() <= record.weight(key)

    @pytest.mark.parametrize("detail", [{}, {"comment": "🔑" * 1_024}, {f"key{number}": "v" for number in range(100)}])
    def test_events(self, detail: dict[str, str]) -> None:
        """An event's message has at most the estimated bytes."""
        actor = ("0" * 16, "🔑" * 255)
        call = ("2001:db8::" + "f" * 30, "x" * 128, bytes(156))
        event = Event(2**62, 10, "0" * 16, "p" * 128, "e" * 128, NOW + 1, *actor, json.dumps(detail), *call, bytes(32))
        assert responses.event(event).ByteSize() <= log.sent(event)

    @pytest.mark.parametrize("sign", ["x", "ж", "🔑"])
    def test_deliveries(self, sign: str) -> None:
        """A delivery's message has at most the estimated bytes."""
        row = DeliveryRow(
            id="msg_" + "0" * 32, revision=2**62, type=7, key_id="0" * 16, project_id="p" * 128, url=sign * 2_048,
            state=1, attempts=30_000, event_time=NOW + 1, last_attempt_time=NOW + 1, next_attempt_time=NOW + 1,
            last_status=599, last_error=sign * 200,
        )  # fmt: skip
        assert responses.delivery(row).ByteSize() <= webhook_admin._weight(row)


class TestCut:
    """How many entries fit in a page."""

    @pytest.mark.parametrize(
        ("found", "size", "expected"),
        [
            ([], 3, ([], False)),
            ([1, 1, 1], 3, ([1, 1, 1], False)),
            ([1, 1, 1, 1], 3, ([1, 1, 1], True)),
            ([ANSWER_BYTES.most // 2] * 3, 3, ([ANSWER_BYTES.most // 2], True)),
            ([ANSWER_BYTES.most * 2, 1], 3, ([ANSWER_BYTES.most * 2], True)),
            ([1, ANSWER_BYTES.most * 2, 1], 3, ([1], True)),
            ([ANSWER_BYTES.most * 2], 3, ([ANSWER_BYTES.most * 2], False)),
        ],
    )
    def test_cut(self, found: list[int], size: int, expected: tuple[list[int], bool]) -> None:
        """A page ends at its size or when the answer is full, and has at least one entry."""
        entries, more = cut(found, size, lambda weight: weight)
        assert (list(entries), more) == expected

    def test_the_rest_is_not_looked_at(self) -> None:
        """Only one entry beyond the page is read, because each costs making a record."""
        left = iter([ANSWER_BYTES.most] * 100)
        cut(left, 100, lambda weight: weight)
        assert len(list(left)) == 98
