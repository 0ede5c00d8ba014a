"""Metrics of several processes together."""

import contextlib
import json
import shutil
import socket
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from tests.e2e.service import eventually
from tumbler_server import metrics
from tumbler_server.metrics import Counted, Scheduled
from tumbler_server.ports import reserved


def counting(folder: Path, pid: int, name: str, count: float) -> None:
    """Count as a process with this id does."""
    file = MmapedDict(str(folder / f"counter_{pid}.db"))
    file.write_value(json.dumps([name, f"{name}_total", {}, "help"]), count, 0)
    file.close()


def counts(collector: Counted) -> dict[str, float]:
    """Return the values of a collector."""
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_all_processes_are_one_sum(tmp_path: Path) -> None:
    """The counts of all processes are added up, and a scheduler's can be collected separately."""
    counting(tmp_path, 1, "tumbler_bcrypt_runs", 2)
    counting(tmp_path, 2, "tumbler_bcrypt_runs", 3)
    counting(tmp_path, 3, "tumbler_alarms", 4)
    assert counts(Counted(str(tmp_path))) == {"tumbler_bcrypt_runs_total": 5, "tumbler_alarms_total": 4}
    assert counts(Scheduled(str(tmp_path))) == {"tumbler_alarms_total": 4}


def test_a_file_that_was_only_begun_hides_no_counts(tmp_path: Path) -> None:
    """A file that its killed process had only created does not make scrapes fail."""
    counting(tmp_path, 1, "tumbler_bcrypt_runs", 2)
    (tmp_path / "counter_2.db").touch()
    (tmp_path / "gauge_livesum_2.db").write_bytes(bytes(65_536))
    (tmp_path / "gauge_livesum_3.db").symlink_to(tmp_path / "gone")
    assert counts(Counted(str(tmp_path))) == {"tumbler_bcrypt_runs_total": 2}


def test_a_folder_that_was_removed_counts_nothing(tmp_path: Path) -> None:
    """If the folder has been removed, a scrape returns nothing and does not fail."""
    assert counts(Counted(str(tmp_path / "gone"))) == {}


def test_a_full_disk_has_no_room_for_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts while the disk is full is not counted: its mapped files could not be written."""
    folder = metrics.Folder(str(tmp_path / "counts"))
    assert folder.environment()[metrics.FOLDER] == folder.path
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=metrics.MIB - 1))
    assert metrics.FOLDER not in folder.environment()


def test_connections_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection beyond the bound is closed at once, and a place that is free again is given to the next one."""
    monkeypatch.setattr(metrics, "_READERS", 2)
    with reserved("127.0.0.1:0") as port:
        pass
    where = ("127.0.0.1", port)
    with contextlib.ExitStack() as opened:
        opened.enter_context(metrics.served(f"127.0.0.1:{port}"))
        silent = [opened.enter_context(socket.create_connection(where, timeout=30)) for _ in range(2)]
        with socket.create_connection(where, timeout=30) as third:
            assert third.recv(1) == b""
        silent[0].close()

        def answered() -> bool:
            with socket.create_connection(where, timeout=30) as reader, contextlib.suppress(OSError):
                reader.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return reader.recv(15) == b"HTTP/1.0 200 OK"
            return False

        eventually(answered)
