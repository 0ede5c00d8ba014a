"""A full disk: verification goes on, changes are refused with the cause, and health and log report it."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.service import Service, eventually
from tests.harness import Refused

SIZE = 3 * 1024 * 1024
"""The size of the small disk in bytes."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a private disk. Skip the test if mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill a disk until the context ends."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


def told(service: Service, *words: str) -> list[dict[str, object]]:
    """Return the log lines whose event contains one of these words."""
    lines = [json.loads(line) for line in service.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if any(word in str(line["event"]) for word in words)]


def refused(call: Callable[[], object]) -> Refused:
    """Call until the call is refused, and return the refusal."""

    def once() -> Refused | None:
        try:
            call()
        except Refused as refusal:
            return refusal
        return None

    return eventually(once)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(small_disk: Path, tmp_path: Path, workers: int) -> None:
    """On a full disk, Verify works, changes fail with the cause FULL, and health and log report it until it ends."""
    service = Service(tmp_path / "data", f"sqlite:///{small_disk}/tumbler.db").init()
    service.start("--workers", str(workers), "--log-format", "json")
    try:
        key = service.create().key
        assert service.health("changes") == "SERVING"
        with filled(small_disk):
            failure = refused(service.create)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert dict(failure.info.metadata) == {"cause": "FULL", "changed": "no"}
            assert failure.message == "the database has no space left; nothing was changed"
            for _ in range(30):
                assert refused(service.create).info.metadata["cause"] == "FULL"
                assert service.verdict(key) == "VALID"
            eventually(lambda: service.health("changes") == "NOT_SERVING")
            assert service.health() == "SERVING"
            for line in (lines := told(service, "the database takes no changes")):
                assert (line["cause"], line["code"]) == ("FULL", "SQLITE_FULL")
                assert line["reason"] == "database or disk is full"
                assert "free space" in str(line["mend"])
            assert 1 <= len(lines) <= workers + 1, "one for each process that met it"
        eventually(lambda: service.health("changes") == "SERVING")
        assert service.verdict(service.create().key) == "VALID"
        eventually(lambda: len(told(service, "over: the database takes no changes")) == len(lines))
        assert len(told(service, "the database takes no changes")) == 2 * len(lines)
        service.audit()
        assert service.stop() == 0
    finally:
        service.close()


def test_with_the_log_on_it(small_disk: Path) -> None:
    """If the log is on the full disk too, the server works as usual and later reports the dropped lines."""
    service = Service(small_disk / "data").init().start("--log-format", "json")
    try:
        key = service.create().key
        with filled(small_disk):
            assert refused(service.create).info.metadata["cause"] == "FULL"
            eventually(lambda: service.health("changes") == "NOT_SERVING")
            assert (service.health(), service.verdict(key)) == ("SERVING", "VALID")
        eventually(lambda: service.health("changes") == "SERVING")
        eventually(lambda: told(service, "over: the database takes no changes"))
        assert all(line["lines"] for line in told(service, "lines were dropped"))
        assert told(service, "lines were dropped")
        assert service.stop() == 0
    finally:
        service.close()


def test_commands_on_a_full_disk(small_disk: Path) -> None:
    """On a full disk, `init` fails with one error line, and the doctor reports that changes fail."""
    service = Service(small_disk / "data").init()
    with filled(small_disk):
        told = service.command("doctor")
        assert "changes fail" in told.stdout
        other = Service(small_disk / "other")
        for command in (other.command("init"),):
            assert command.returncode == 1
            assert command.stdout == ""
            assert "Traceback" not in command.stderr
            assert command.stderr.splitlines()[-1].startswith("tumbler-server: ")
            assert "no space left" in command.stderr or "No space left" in command.stderr
    service.close()
