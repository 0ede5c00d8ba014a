"""Watch through a real gRPC server in this process, whose internals a test can reach."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.service import Client, eventually
from tests.harness import CHEAP
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler_server import founding, server
from tumbler_server.config import Config, Installation
from tumbler_server.rpc import responses
from tumbler_server.server import Core, build_core


class Served:
    """A server in this process and its operator's connection."""

    def __init__(self, database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        installation = Installation(data_dir, database_url)
        operator = founding.found(installation, CHEAP, "tmb")
        cores: list[Core] = []

        def keep(*given: Any) -> Core:
            cores.append(build_core(*given))
            return cores[0]

        monkeypatch.setattr(server, "build_core", keep)
        config = Config(installation, listen="127.0.0.1:0", bcrypt_cost=CHEAP, shutdown_grace=0)
        self._server = server.build_server(config)
        self._server.start()
        (self.core,) = cores
        self.client = self.connect(operator)

    def connect(self, key: str) -> Client:
        """Open a connection with a key."""
        return Client(f"127.0.0.1:{self._server.port}", key)

    def close(self) -> None:
        """Close the connection and stop the server."""
        self.client.close()
        self._server.stop()


@pytest.fixture
def served(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Return a server on each database."""
    served = Served(database_url, tmp_path / "data", monkeypatch)
    yield served
    served.close()


def test_from_the_first_response_to_the_last(served: Served) -> None:
    """A stream sends each event and is removed when its client cancels."""
    stream = served.client.watch().opened()
    made = served.client.create()
    (event,) = stream.events(1)
    assert [(event.revision,)] == served.core.store.read(
        "SELECT revision FROM event WHERE key_id = ?", [made.api_key.id]
    )
    assert event.hash == b"", "it covers what Watch leaves out"
    assert event.type == event_pb2.KEY_EVENT_TYPE_CREATED
    assert len(served.core.hub) == 1
    stream.cancel()
    eventually(lambda: len(served.core.hub) == 0)


def test_a_key_that_is_there_no_more(served: Served) -> None:
    """If a caller's row was deleted from the database, no stream starts, even if the key is cached."""
    made = served.client.create(scopes=["tumbler:keys:verify"])
    caller = served.connect(made.key)
    assert caller.verdict(made.key) == "VALID"
    delete = f"DELETE FROM api_key WHERE id = '{made.api_key.id}'"  # noqa: S608 - an id of our own
    served.core.store.write_unserialized(lambda db: db.execute_sql(delete))
    assert caller.watch().ended().code is grpc.StatusCode.UNAUTHENTICATED
    caller.close()


def test_who_may_verify_keys_reads_none(served: Served) -> None:
    """A stream shows which fields of a key changed, not their values, and not the caller's address."""
    stream = served.client.watch().opened()
    made = served.client.create(owner_id="alice", scopes=["a:b"], metadata={"note": "confidential"})
    served.client.call(
        "Update", pb.UpdateRequest(api_key={"id": made.api_key.id, "owner_id": "bob", "scopes": ["internal:payroll"]})
    )
    served.client.call("Revoke", pb.RevokeRequest(key_id=made.api_key.id, reason="REVOKE_REASON_OTHER", comment="jane"))
    created, updated, revoked = stream.events(3)
    assert [dict(event.detail) for event in (created, updated)] == [{}, {"fields": "owner_id,scopes"}]
    assert dict(revoked.detail) == {"reason": "other"}
    for event in (created, updated, revoked):
        assert (event.client_address, event.request_id, event.record_digest) == ("", "", b"")


def test_a_fault_is_told_to_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If an internal error ends a stream, its text is fixed, and the next stream can resume from the cursor."""
    stream = served.client.watch().opened()

    def fail(_: Any) -> Any:
        raise KeyError("a secret")

    with monkeypatch.context() as broken:
        broken.setattr(responses, "watched", fail)
        made = served.client.create()
        refused = stream.ended()
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refused.message == "internal error; the server's log has the details"
    assert "a secret" not in "".join(capsys.readouterr())
    again = served.client.watch(start_cursor=stream.cursor)
    assert [event.key_id for event in again.events(1)] == [made.api_key.id]
