"""The shared test vectors, with each language's own code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conformance.programs import PATIENCE, Program
from tumbler import keyformat

VECTORS = Path(__file__).parents[2] / "vectors"

GOOD = {"target": "127.0.0.1:1", "api_key": keyformat.build("tmb", "0" * 16, "0" * 43)}
NOT_WATCHING = {"watch": False, "fixed_ttl": 1_000}


def rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    vectors: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())["vectors"]
    return vectors


def test_every_row_is_decided_as_in_the_server(program: Program) -> None:
    """Each record, request and time of the file gets the file's code."""
    asked = [
        (row, program.begin("decide", record=row["record"], request=row["request"], now=row["now"]))
        for row in rows("verify.json")
    ]
    answers = {row["name"]: (future.result(PATIENCE), row["code"]) for row, future in asked}
    assert {name: answer for name, (answer, code) in answers.items() if answer != {"code": code}} == {}


def test_every_row_is_of_a_keys_form_or_not(program: Program) -> None:
    """Each text is a well-formed key or not, as the file says, and the parts of a key are found."""
    wrong = {}
    for row in rows("keyformat.json"):
        text = row["key"]
        if isinstance(text, dict):
            text = text["repeat"][0] * text["repeat"][1]
        answer = program.call("well_formed", key=text)
        right = answer["well_formed"] is row["well_formed"]
        if row["well_formed"]:
            right = right and (answer["prefix"], answer["key_id"]) == (row["prefix"], row["id"])
        if not right:
            wrong[row["name"]] = answer
    assert wrong == {}


@pytest.mark.parametrize(
    "options",
    [
        {"target": "keys.example.com:443"},
        {"target": "0.0.0.0:50051"},
        {"heartbeat": 500},
        {"heartbeat": 2_000, "max_staleness": 2_000},
        {"cache_size": -1},
        {"cache_bytes": -1},
        {"timeout": 0},
        {"fixed_ttl": 1_000},
        {"api_key": ""},
    ],
    ids=lambda options: " ".join(f"{name}={value!r}" for name, value in options.items()),
)
def test_options_that_cannot_be_meant_are_refused(program: Program, options: dict[str, Any]) -> None:
    """Options that break a rule are refused, and the message names one of them."""
    answer = program.call("open", **{**GOOD, **options})
    assert answer.get("error") == "option", answer
    assert answer["message"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "localhost:1"},
        {"cache_size": 0},
        {"cache_bytes": 0},
        {"heartbeat": 1_000, "max_staleness": 1_001},
        NOT_WATCHING,
    ],
    ids=lambda options: " ".join(f"{name}={value!r}" for name, value in options.items()) or "none",
)
def test_options_at_the_edge_are_taken(program: Program, options: dict[str, Any]) -> None:
    """Options that break no rule are accepted, whether there is a server or not."""
    assert program.call("open", **{**GOOD, **options}) == {}
    assert program.call("close") == {}
