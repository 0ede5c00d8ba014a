"""The board, on which one server's workers post how far the log has come."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.service import together
from tumbler_server.freshness.board import Board, board_file


@pytest.fixture
def file() -> Iterator[int]:
    """Yield a board file for three workers."""
    file = board_file(3)
    yield file
    os.close(file)


def test_alone() -> None:
    """A single process reads its own posts; at first the newest is 0."""
    board = Board()
    assert board.newest() == 0
    board.post(7)
    assert board.newest() == 7
    assert Board().newest() == 0


def test_newest_of_all(file: int) -> None:
    """Every worker reads the newest of all posts, in whatever order they were made."""
    boards = [Board(file, slot) for slot in range(3)]
    for slot, revision, newest in [(1, 5, 5), (0, 3, 5), (2, 6, 6), (1, 6, 6), (0, 2**62, 2**62)]:
        boards[slot].post(revision)
        assert {board.newest() for board in boards} == {newest}


def test_never_lower(file: int) -> None:
    """A late post of an older revision, by a slow thread, does not lower the newest."""
    board = Board(file, 1)
    board.post(9)
    board.post(8)
    assert board.newest() == 9


def test_posted_at_once(file: int) -> None:
    """Threads that post at the same moment leave the newest of their revisions."""
    board = Board(file, 2)
    for first in range(1, 500, 16):
        together(16, lambda number, first=first: board.post(first + (number * 7) % 16))
        assert board.newest() == first + 15


def test_new_process_in_an_old_slot(file: int) -> None:
    """A worker that replaces a dead one finds its posts, and others still see them."""
    Board(file, 0).post(4)
    successor = Board(file, 0)
    assert successor.newest() == 4
    successor.post(5)
    assert Board(file, 1).newest() == 5


def test_another_process(file: int) -> None:
    """A post by another process that has inherited the file stays after its exit."""
    board = Board(file, 0)
    board.post(1)
    program = (
        "from tumbler_server.freshness.board import Board;"
        f" b = Board({file}, 1); assert b.newest() == 1; b.post(12_345)"
    )
    subprocess.run([sys.executable, "-c", program], pass_fds=[file], check=True)
    assert board.newest() == 12_345


def test_room_for_each(file: int) -> None:
    """Each worker has a slot, and a further worker is refused."""
    with pytest.raises(IndexError):
        Board(file, 3).post(1)
