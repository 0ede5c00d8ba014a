"""Old keys that end on their successors' first use, with killed servers and with several processes."""

import signal

from tests.e2e.service import Client, Service, eventually, together
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.events.log import EventType

DAY = 86_400.0


def rotate(client: Client, key_id: str) -> pb.RotateResponse:
    """Rotate a key so that it ends on its successor's first use."""
    return client.rotate(key_id, grace=DAY, old_key_ends="OLD_KEY_ENDS_ON_FIRST_USE")


def told(service: Service, happened: EventType, key_id: str) -> int:
    """Return how many events of a type a key has."""
    ((count,),) = service.read("SELECT COUNT(*) FROM event WHERE type = ? AND key_id = ?", int(happened), key_id)
    return int(count)


def test_killed_between_the_use_and_its_end(installed: Service) -> None:
    """If the server dies before it records the first use of a new key, the old key works until the next use."""
    installed.start()
    old = installed.create()
    new = rotate(installed, old.api_key.id)
    with installed.writers_waiting():
        # The use is answered although nothing can be written.
        assert [installed.verdict(new.key) for _ in range(3)] == ["VALID"] * 3
        assert installed.verdict(old.key) == "VALID"
        installed.signal(signal.SIGKILL)
        installed.wait()
    installed.start()
    assert installed.verdict(old.key) == "VALID"
    assert told(installed, EventType.FIRST_USED, new.api_key.id) == 0

    assert installed.verdict(new.key) == "VALID"
    eventually(lambda: installed.verdict(old.key) == "SUPERSEDED")
    assert told(installed, EventType.FIRST_USED, new.api_key.id) == 1
    installed.audit()


def test_two_servers(server: Service, other: Service, project: str) -> None:
    """However many concurrent calls on two servers see the first use, each old key ends once, on both servers."""
    old = [server.create(project_id=project) for _ in range(8)]
    new = [rotate(server, key.api_key.id) for key in old]

    def use(number: int) -> str:
        return (server, other)[number % 2].verdict(new[number % 8].key)

    assert together(32, use) == ["VALID"] * 32
    for key in old:
        for each in (server, other):
            eventually(lambda each=each, key=key: each.verdict(key.key) == "SUPERSEDED")
    assert [told(server, EventType.FIRST_USED, key.api_key.id) for key in new] == [1] * 8
    assert [told(server, EventType.UPDATED, key.api_key.id) for key in old] == [1] * 8
    server.audit()


def test_two_workers(embedded: Service) -> None:
    """Concurrent first uses on two workers end the old key once, on both workers."""
    embedded.start("--workers", "2")
    old = embedded.create()
    new = rotate(embedded, old.api_key.id)
    clients = [embedded.connect() for _ in range(6)]
    assert together(6, lambda number: clients[number].verdict(new.key)) == ["VALID"] * 6
    for client in clients:
        eventually(lambda client=client: client.verdict(old.key) == "SUPERSEDED")
    assert told(embedded, EventType.FIRST_USED, new.api_key.id) == 1
