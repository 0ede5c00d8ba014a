"""The parts of the benchmarks: parsers, tables and the measured server."""

from pathlib import Path

import pytest

from benchmarks import load, seed, tables
from benchmarks.parts import verify
from benchmarks.run import PAGE
from benchmarks.server import NOOP
from benchmarks.service import Service, found
from tumbler.v1 import api_key_service_pb2 as pb

PRINTED = """\
starting benchmark...
spawning thread #0: 8 total client(s). 2000 total requests
progress: 100% done

finished in {took}, 3184.71 req/s, 255.10KB/s
requests: 2000 total, 2000 started, 2000 done, 1998 succeeded, 2 failed, 2 errored, 0 timeout
status codes: 1998 2xx, 0 3xx, 0 4xx, 2 5xx
traffic: 160.20KB (164046) total, 15.69KB (16064) headers (space savings 95.18%), 9.77KB (10000) data
                     min         max         mean         sd        +/- sd
time for request:      191us      1.34ms       310us        77us    85.20%
"""


@pytest.mark.parametrize(("took", "seconds"), [("628.01ms", 0.62801), ("6.28s", 6.28), ("900us", 0.0009)])
def test_h2loads_figures_are_read(took: str, seconds: float) -> None:
    """The parser of h2load's output accepts every unit of time."""
    answered = load.parse_h2load(PRINTED.format(took=took))
    assert answered == load.Answered(calls=2000, succeeded=1998, seconds=pytest.approx(seconds), data=10000)


def test_output_without_figures_is_no_measurement() -> None:
    """h2load output without figures raises Unfit."""
    with pytest.raises(load.Unfit):
        load.parse_h2load("starting benchmark...\nCould not connect\n")


def test_h2loads_log_gives_latencies() -> None:
    """Each line of h2load's log is one call; its third field is the latency in microseconds."""
    took = load.parse_h2load_log("1700000000000001\t200\t250\n1700000000000002\t200\t1500\n")
    assert took == [0.25, 1.5]
    assert load.percentile(took, 0.5) == load.percentile(took, 0.99) == 1.5


def test_requests_are_framed_as_grpc_and_loadgen_take_them(tmp_path: Path) -> None:
    """A gRPC frame has a flag before the length; loadgen's file has only the length."""
    assert load.frame(b"key") == b"\0\0\0\0\3key"
    assert load.write_bodies(tmp_path / "bodies", [b"key", b""]).read_bytes() == b"\0\0\0\3key\0\0\0\0"


def test_rounds_become_a_ratio() -> None:
    """A ratio is shown as the median of its rounds, with minimum and maximum, in significant digits."""
    assert tables.ratio(load.ratio([0.9, 0.7, 0.8])) == "0.80 (0.70–0.90)"
    assert tables.ratio([24.18, 23.0, 25.0]) == "24.2 (23.0–25.0)"
    assert tables.ratio([0.0047, 0.0046, 0.0048]) == "0.0047 (0.0046–0.0048)"


def test_a_table_takes_the_place_of_the_one_before() -> None:
    """Writing a table twice gives the same page and leaves the surrounding text unchanged."""
    page = "before\n<!-- x: written by make bench -->\nold | \\1\n<!-- x: end -->\nafter\n"
    block = tables.table(["call", "a second"], [["warm", "3,000"]])
    once = tables.insert(page, "x", block)
    assert once == tables.insert(once, "x", block)
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| warm | 3,000 |" in once
    assert "old" not in once


@pytest.mark.parametrize("name", ["machine", "goals", *tables.PARTS])
def test_the_page_has_one_place_for_each_table(name: str) -> None:
    """docs/performance.md has the markers of each table."""
    page = PAGE.read_text()
    assert tables.insert(page, name, "a table") != page


def test_a_goal_that_is_missed_is_said_to_be() -> None:
    """The table of goals marks a missed goal with **no**."""

    def row(case: str, median: float) -> dict[str, object]:
        return {"database": "SQLite", "case": case, "in_flight": 1, "ratio": [median, median, median]}

    shown = tables.goals_table({"verify": [row(verify.WARM, 0.86), row(verify.NEVER_SEEN, 0.59)]})
    warm, never_seen = shown.splitlines()[2:]
    assert warm.endswith("| yes |")
    assert never_seen.endswith("| **no** |")


def test_the_measured_server_is_the_real_one_with_a_no_op(tmp_path: Path) -> None:
    """The benchmark's server verifies seeded keys by digest or bcrypt, and serves a no-op method as well."""
    house = found(tmp_path / "house")
    good, bare, unknown = seed.texts(3)
    seed.add_digested(house.url, house.pepper_file, [good])
    seed.add_undigested(house.url, [bare])
    with Service(house) as service:
        key = service.caller("tumbler:keys:verify")
        assert service.raw(NOOP, b"", key) == b""
        verdicts = [
            service.call("Verify", pb.VerifyRequest.FromString(verify.request(text)), key).code
            for text in (good, verify.wrong(good), verify.mistyped(good), unknown)
        ]
        assert verdicts == [
            pb.VERIFY_CODE_VALID,
            pb.VERIFY_CODE_NOT_FOUND,
            pb.VERIFY_CODE_MALFORMED,
            pb.VERIFY_CODE_NOT_FOUND,
        ]
        counted = service.counted()
        assert counted["bcrypt_runs"] == 0
        assert counted["record_reads"] >= 2
        assert counted["resident"] > 0
        verify.must_be("VALID")(service.raw(verify.VERIFY, verify.request(bare), key))
        assert service.counted()["bcrypt_runs"] == 1
