"""No secret is ever written down: not in the log, not in what is printed, not in the database."""

from contextlib import suppress
from uuid import uuid4

import psycopg
from google.protobuf.message import Message
from psycopg import sql

from tests.e2e.service import Service
from tests.harness import Refused
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb


def everything_at_rest(service: Service) -> bytes:
    """Return all that the database holds: its files, or a dump of all its tables."""
    if service.database_url.startswith("postgresql"):
        with psycopg.connect(service.database_url) as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
            ).fetchall()
            whole = sql.SQL("SELECT t::text FROM {} t")
            rows = [connection.execute(whole.format(sql.Identifier(table))).fetchall() for (table,) in tables]
        return repr(rows).encode()
    files = list(service.data_dir.glob("tumbler.db*"))
    assert len(files) >= 2, "the write-ahead log is looked at, too"
    return b"".join(path.read_bytes() for path in files)


def use_everything(service: Service) -> list[str]:
    """Call every RPC, rightly and wrongly, with keys in fields where none belongs; return all keys that were made."""
    request_id = str(uuid4())
    first = service.create(name="first", request_id=request_id, scopes=["orders:*"])
    service.call(
        "Create", pb.CreateRequest(project_id="acme", name="first", request_id=request_id, scopes=["orders:*"])
    )
    second = service.rotate(first.api_key.id)
    caller = service.caller("tumbler:keys:verify", "tumbler:keys:read")
    keys = [service.key, first.key, second.key, caller.key]
    service.set_active(second.api_key.id, active=False)
    for key in keys:
        service.verify(key)
        caller.verify(key[:-1] + ("0" if key[-1] != "0" else "1"))
        caller.verify(key, required_scopes=["orders:read"])
    mistaken: list[tuple[str, Message]] = []
    for key in keys:
        mistaken += [
            ("Get", pb.GetRequest(key_id=key)),
            ("Revoke", pb.RevokeRequest(key_id=key)),
            ("Rotate", pb.RotateRequest(key_id=key)),
            ("SetActive", pb.SetActiveRequest(key_id=key)),
            ("Update", pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=key, name="name"))),
            ("Update", pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=first.api_key.id), update_mask={"paths": [key]})),
            ("List", pb.ListRequest(order_by=key)),
            ("List", pb.ListRequest(page_token=key)),
            ("Create", pb.CreateRequest(project_id="acme", request_id=key)),
            ("Create", pb.CreateRequest(project_id="acme", allowed_cidrs=[key])),
            ("Create", pb.CreateRequest(project_id="acme", prefix=key)),
            ("Verify", pb.VerifyRequest(key=key, client_ip=key)),
            ("Verify", pb.VerifyRequest(key=key, consistency={"at_least_as_fresh": key})),
            ("Create", pb.CreateRequest(project_id="acme", name="x" * 255 + key)),
            ("ListEvents", pb.ListEventsRequest(page_token=key)),
            ("ClaimRotation", pb.ClaimRotationRequest(claim_token=key)),
        ]
    for method, request in mistaken:
        try:
            service.call(method, request)
        except Refused as refused:
            said = f"{refused.message} {refused.status}"
            assert not [key for key in keys if key.rpartition("_")[2] in said]
            continue
        raise AssertionError(f"{method} was not refused: {request}")
    for header in ("authorization", "x-api-key"):
        client = service.connect("")
        client.metadata = ((header, f"Bearer {first.key}"),)
        with suppress(Refused):
            client.get(first.api_key.id)
    service.call("List", pb.ListRequest(show_total_size=True))
    service.revoke(first.api_key.id, reason=api_key_pb2.REVOKE_REASON_COMPROMISED)
    return keys


def test_no_secret_is_written_down(installed: Service) -> None:
    """After all RPCs, used rightly and wrongly, no key and no pepper is found in the log, on stdout or at rest."""
    installed.start("--log-level", "debug", "--log-format", "json")
    keys = use_everything(installed)
    installed.tamper("ALTER TABLE event RENAME TO elsewhere")  # so that there is a fault to be logged as well
    for key in keys:
        with suppress(Refused):
            installed.create(name="never made", metadata={"pasted": key})
    at_rest = everything_at_rest(installed)
    installed.stop()
    assert "a call failed" in installed.stderr
    pepper = installed.pepper_file.read_text().split()[-1]
    secrets = [key.rpartition("_")[2][:-6] for key in keys] + [pepper]
    assert all(len(secret) >= 43 for secret in secrets)
    for secret in secrets:
        assert secret not in installed.stderr + installed.stdout
        assert secret.encode() not in at_rest
    # That it would have been found is shown by what may be seen.
    assert keys[1].split("_")[1].encode() in at_rest
