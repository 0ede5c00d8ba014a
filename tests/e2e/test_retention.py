"""A server that removes old events, and what can still be read and audited."""

import json
import time

from tests.e2e.service import Service, eventually
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, system_clock
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import evidence
from tumbler_server.store.database import Transaction, open_store
from tumbler_server.store.models import ApiKeyRow, ClockRow, EventRow, LogHeadRow


def age(service: Service, *days: int) -> None:
    """Replace the installation's log by events of these ages in days, about its first key."""
    store = open_store(service.database_url)
    ((key_id,),) = store.read("SELECT id FROM api_key")

    def work(transaction: Transaction) -> None:
        ((row, _),) = evidence.stored(transaction.read, [key_id]).values()
        record = evidence.digest(row)
        transaction.run(EventRow.delete())
        transaction.run(LogHeadRow.update(revision=0, hash=log.GENESIS))
        for old in days:
            past, actor = system_clock() - old * DAY, Actor("", "the past")
            change = Change(EventType.UPDATED, key_id, "tumbler", "", past, actor, record=record)
            transaction.run(ApiKeyRow.update(revision=log.append(transaction, change)))

    store.write_serialized(work)
    now = ClockRow.update(time=system_clock())  # as if a server had run until now
    store.write_serialized(lambda transaction: transaction.run(now))
    store.close()


def test_old_events_go_and_the_rest_can_be_checked(installed: Service) -> None:
    """With --event-retention 7d, the server removes older events, and an audit reports where the log begins."""
    age(installed, 30, 20, 8, 6, 3)
    installed.start("--event-retention", "7d")
    assert eventually(lambda: installed.read("SELECT anchor_revision FROM log_head") == [(3,)])
    events = installed.call("ListEvents", pb.ListEventsRequest()).events
    assert [event.revision for event in events] == [4, 5]
    assert events[0].time.ToSeconds() < time.time() - 5 * 86_400
    key_id = installed.create().api_key.id
    assert installed.call("ListEvents", pb.ListEventsRequest(key_id=key_id)).events[0].revision == 6

    audit = installed.command("audit", "verify")
    assert (audit.returncode, audit.stderr) == (0, "")
    first, second, *_ = audit.stdout.splitlines()
    assert first == "ok: 3 events match the hash chain, and 2 keys match their events"
    assert second.startswith("the log begins with event 4 of ")
    found = json.loads(installed.command("audit", "verify", "--json").stdout)
    assert (found["events"], found["from_revision"], found["removed"], found["problems"]) == (3, 4, 3, [])
    assert f"of {found['since']};" in second


def test_less_than_a_day_is_refused(embedded: Service) -> None:
    """A retention of less than a day is refused as a probable mistake."""
    refused = embedded.command("serve", "--listen", "127.0.0.1:0", "--event-retention", "23h")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--event-retention must be at least 1d" in refused.stderr
