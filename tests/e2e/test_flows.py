"""Three typical uses of the service, end to end."""

import time
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.e2e.service import Client, Service, eventually, seconds
from tests.harness import Refused
from tumbler.v1 import api_key_service_pb2 as pb

MANAGER = ("tumbler:keys:create", "tumbler:keys:read", "tumbler:keys:update", "tumbler:keys:verify")


def instant(days: float) -> Timestamp:
    """Return the timestamp ``days`` from now."""
    result = Timestamp()
    result.FromDatetime(datetime.now(timezone.utc) + timedelta(days=days))
    return result


def switch(client: Client, name: str, active: bool, **fields: str) -> pb.SetActiveResponse:
    """Activate or deactivate a key by name, in the caller's own project."""
    return client.call("SetActive", pb.SetActiveRequest(by_name=pb.KeyName(name=name, **fields), active=active))


def test_an_organisation_keeps_long_lived_tokens(server: Service, project: str) -> None:
    """An organisation creates tokens by name, pages through them, and deactivates and activates one by name."""
    ours = server.caller(*MANAGER, project_id=project)
    names = ["billing", "chat", "deploy", "mail", "search"]
    tokens = {name: ours.create(project_id=project, name=name).key for name in names}

    first = ours.call("List", pb.ListRequest(page_size=2, order_by="name desc", show_total_size=True))
    assert first.total_size == len(names) + 1  # including the calling key
    assert [key.name for key in first.api_keys] == ["search", "mail"]
    shifted = ours.call("List", pb.ListRequest(page_size=2, skip=3, order_by="name desc", show_total_size=True))
    assert [key.name for key in shifted.api_keys] == ["chat", "caller"]
    assert shifted.total_size == first.total_size
    seen, token = [], ""
    while True:
        page = ours.call("List", pb.ListRequest(page_size=2, order_by="name asc", page_token=token))
        seen += [key.name for key in page.api_keys]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted([*names, "caller"])
    assert not any(key.HasField("expire_time") for key in first.api_keys)

    assert ours.verdict(tokens["deploy"]) == "VALID"
    assert switch(ours, "deploy", False).api_key.name == "deploy"
    assert ours.verdict(tokens["deploy"]) == "INACTIVE"
    assert ours.verdict(tokens["mail"]) == "VALID"
    switch(ours, "deploy", True)
    assert ours.verdict(tokens["deploy"]) == "VALID"


def test_another_organisation_sees_nothing_of_ours(server: Service, project: str) -> None:
    """A caller of another project cannot list, read, deactivate or verify a project's tokens."""
    token = server.create(project_id=project, name="deploy")
    stranger = server.caller(*MANAGER, project_id=f"{project}-stranger")
    assert [key.name for key in stranger.call("List", pb.ListRequest()).api_keys] == ["caller"]
    assert stranger.verdict(token.key) == "NOT_FOUND"
    with pytest.raises(Refused) as reading:
        stranger.get(token.api_key.id)
    assert reading.value.reason == "KEY_NOT_FOUND"
    with pytest.raises(Refused) as naming:
        switch(stranger, "deploy", False, project_id=project)
    assert naming.value.reason == "OTHER_PROJECT"
    assert server.verdict(token.key) == "VALID"


def test_a_projects_key_is_rotated_while_it_is_in_use(server: Service, project: str) -> None:
    """During the grace period of a rotation both keys work; after it, only the new one does, with the same fields."""
    made = server.create(
        project_id=project,
        environment_id="live",
        name="orders backend",
        owner_id="team-orders",
        scopes=["orders:*", "stock:read"],
        metadata={"tier": "gold"},
        ttl=seconds(86_400),
        prefix="acme_live",
    )
    asked = {"environment_id": "live", "required_scopes": ["orders:read", "stock:read"]}
    assert made.key.startswith("acme_live_")
    assert server.verdict(made.key, **asked) == "VALID"
    assert server.verdict(made.key, environment_id="test") == "ENVIRONMENT_MISMATCH"
    assert server.verdict(made.key, required_scopes=["stock:write"]) == "INSUFFICIENT_SCOPE"

    rotated = server.rotate(made.api_key.id, grace=1.5)
    old, new = rotated.old_api_key, rotated.api_key
    ends = old.grace_expire_time.ToMicroseconds()
    during = server.verify(made.key, **asked)
    assert during.valid or during.check_time.ToMicroseconds() >= ends
    assert during.replaced_by_key_id == new.id
    assert server.verdict(rotated.key, **asked) == "VALID"

    def after() -> pb.VerifyResponse | None:
        answer = server.verify(made.key, **asked)
        # The switch is exact to the microsecond.
        assert answer.valid == (answer.check_time.ToMicroseconds() < ends)
        return None if answer.valid else answer

    assert eventually(after).code == pb.VERIFY_CODE_SUPERSEDED
    assert server.verdict(rotated.key, **asked) == "VALID"
    assert server.state(old.id) == "SUPERSEDED"

    assert (old.replaced_by_key_id, new.replaces_key_id) == (new.id, old.id)
    assert rotated.key.startswith("acme_live_")
    for carried in ("project_id", "environment_id", "name", "owner_id", "scopes", "metadata", "allowed_cidrs"):
        assert getattr(new, carried) == getattr(made.api_key, carried)
    lifetime = new.expire_time.ToMicroseconds() - new.create_time.ToMicroseconds()
    assert lifetime == 86_400 * 1_000_000


def test_a_rotation_without_grace_ends_the_old_key_at_once(server: Service, project: str) -> None:
    """A rotation with a grace period of zero ends the old key at once."""
    made = server.create(project_id=project)
    rotated = server.rotate(made.api_key.id, grace=0)
    assert server.verdict(made.key) == "SUPERSEDED"
    assert server.verdict(rotated.key) == "VALID"


def test_a_users_key_ends_on_its_date(server: Service, project: str) -> None:
    """A key with an expire_time works until that instant, and is refused from then on."""
    expires = instant(days=1 / 86_400)
    made = server.create(project_id=project, name="my laptop", expire_time=expires)
    ends = expires.ToMicroseconds()
    assert made.api_key.expire_time.ToMicroseconds() == ends

    def over() -> str:
        answer = server.verify(made.key)
        assert answer.valid == (answer.check_time.ToMicroseconds() < ends)
        return "" if answer.valid else pb.VerifyCode.Name(answer.code)

    assert eventually(over) == "VERIFY_CODE_EXPIRED"
    assert server.state(made.api_key.id) == "EXPIRED"


def test_a_name_of_three_to_255_characters_need_not_be_unique(server: Service, project: str) -> None:
    """A name has 3 to 255 characters and need not be unique."""
    for name in ("abc", "ключ №1", "n" * 255, "n" * 255):
        made = server.create(project_id=project, name=name, expire_time=instant(days=30))
        assert made.api_key.name == name
    for name in ("ab", "n" * 256):
        with pytest.raises(Refused) as refused:
            server.create(project_id=project, name=name)
        assert (refused.value.code, refused.value.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


def test_a_name_that_fits_two_keys_switches_neither(server: Service, project: str) -> None:
    """SetActive by a name of two keys is refused with both IDs and changes neither."""
    twins = [server.create(project_id=project, name="my laptop") for _ in range(2)]
    with pytest.raises(Refused) as refused:
        switch(server, "my laptop", False, project_id=project)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NAME_AMBIGUOUS")
    assert set(refused.value.info.metadata["key_ids"].split(",")) == {twin.api_key.id for twin in twins}
    assert {server.verdict(twin.key) for twin in twins} == {"VALID"}


def test_a_past_expiry_date_is_refused_by_its_field(server: Service, project: str) -> None:
    """An expire_time in the past is refused with the name of the field."""
    with pytest.raises(Refused) as refused:
        server.create(project_id=project, name="my laptop", expire_time=instant(days=-1))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.reason, refused.value.fields) == ("INVALID_FIELD", ["expire_time"])
    assert server.call("List", pb.ListRequest(project_id=project, show_total_size=True)).total_size == 0


def test_a_secret_is_shown_once_and_never_again(server: Service, project: str) -> None:
    """Only the first response of Create holds a key's secret; a replay omits it."""
    request = pb.CreateRequest(project_id=project, name="my laptop", request_id=str(uuid4()))
    made = server.call("Create", request)
    secret = made.key.rpartition("_")[2]
    assert made.key == f"{made.api_key.key_prefix}{secret}"

    repeated = server.call("Create", request)
    assert repeated.api_key.id == made.api_key.id
    assert (repeated.key, repeated.secret_omitted) == ("", True)
    rotated = server.rotate(made.api_key.id)
    answers = [
        repeated,
        rotated,
        server.get(made.api_key.id),
        server.call("List", pb.ListRequest(project_id=project)),
        server.verify(made.key),
    ]
    assert not any(secret in str(answer) for answer in answers)

    request.name = "my other laptop"
    with pytest.raises(Refused) as refused:
        server.call("Create", request)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_the_time_of_a_keys_making_is_told(server: Service, project: str) -> None:
    """A key's record shows when it was created and by whom."""
    before = time.time()
    made = server.create(project_id=project)
    assert before - 1 <= made.api_key.create_time.ToMicroseconds() / 1e6 <= time.time() + 1
    assert server.get(made.api_key.id).created_by.name == "first operator"


def test_the_audit_trail_of_all_these_flows_is_whole(server: Service, project: str) -> None:
    """After all these flows, the audit finds no problem."""
    server.create(project_id=project)
    server.audit()
