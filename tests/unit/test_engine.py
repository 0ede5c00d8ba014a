"""The engine's table of methods."""

import pytest

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.errors import SetupError
from tumbler_server.rpc.engine import METHODS, check_methods, lane_limits
from tumbler_server.server import SERVICE


def test_every_rpc_has_its_row() -> None:
    """The table has one row for each RPC, and no other."""
    check_methods(SERVICE)
    assert METHODS.keys() == {method.name for method in SERVICE.methods}


def test_an_rpc_without_a_row_stops_the_server() -> None:
    """A missing row, or a row for an unknown RPC, raises SetupError with the name."""
    rows = dict(METHODS)
    del rows["Get"]
    with pytest.raises(SetupError, match="no lane and limits for Get"):
        check_methods(SERVICE, rows)
    with pytest.raises(SetupError, match="do not exist: Delete"):
        check_methods(SERVICE, {**METHODS, "Delete": METHODS["Get"]})


class _Names:
    """Fake lanes that are their names."""

    def __getattr__(self, name: str) -> str:
        return name


@pytest.mark.parametrize(
    ("method", "request_", "lane"),
    [
        ("Revoke", pb.RevokeRequest(), "stop"),
        ("SetActive", pb.SetActiveRequest(active=False), "stop"),
        ("SetActive", pb.SetActiveRequest(active=True), "change"),
        ("Update", pb.UpdateRequest(), "change"),
        ("Create", pb.CreateRequest(), "issue"),
        ("Rotate", pb.RotateRequest(), "issue"),
        ("ClaimRotation", pb.ClaimRotationRequest(), "claim"),
        ("List", pb.ListRequest(), "read"),
        ("BatchVerify", pb.BatchVerifyRequest(), "batch"),
    ],
)
def test_what_waits_for_what(method: str, request_: object, lane: str) -> None:
    """Each kind of call has its own lane, so what stops a key waits for nothing else."""
    assert METHODS[method].lane(_Names(), request_) == lane  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2, 16, 256])
@pytest.mark.parametrize("cores", [1, 2, 4, 64])
def test_lanes_on_any_machine(threads: int, cores: int) -> None:
    """On any machine each lane has a place, a share is at most all places, and no project can fill a queue."""
    for lane in lane_limits(threads, cores).values():
        assert 1 <= lane.share <= lane.places
        assert 1 <= lane.waiting_each < lane.waiting


@pytest.mark.parametrize("lane", ["read", "change", "stop", "batch", "issue"])
def test_a_place_for_others(lane: str) -> None:
    """In these lanes a project cannot take the last place."""
    for threads, cores in ((1, 1), (16, 2), (256, 64)):
        limit = lane_limits(threads, cores)[lane]
        assert limit.share < limit.places


def test_what_is_served_on_the_loop_has_no_lane() -> None:
    """Verify and Watch have no lane, so asking for one raises TypeError."""
    for method in ("Verify", "Watch"):
        with pytest.raises(TypeError):
            METHODS[method].lane(_Names(), None)  # type: ignore[arg-type]
