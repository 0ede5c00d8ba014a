"""The code without a library: a FastAPI application that reads a key's row from SQLite and runs bcrypt per request."""

import os
import secrets
import sqlite3
import threading
from pathlib import Path
from typing import Annotated

import bcrypt
from fastapi import FastAPI, Header, HTTPException

COST = 10

folder = Path(os.environ["PEER_FOLDER"])
local = threading.local()


def database() -> sqlite3.Connection:
    """Return this thread's connection."""
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(folder / "keys.db")
    connection: sqlite3.Connection = local.connection
    return connection


def make() -> None:
    """Create the table and a key."""
    secret = secrets.token_urlsafe(32)
    hashed = bcrypt.hashpw(secret.encode(), bcrypt.gensalt(COST))
    with database() as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE api_key (id TEXT PRIMARY KEY, name TEXT, hash BLOB)")
        connection.execute("INSERT INTO api_key VALUES ('one', 'benchmark', ?)", (hashed,))
    (folder / "key").write_text(f"one.{secret}")


make()
app = FastAPI()


@app.get("/noop")
def noop() -> dict[str, str]:
    """Answer without a check of a key, on a thread like ``verify``."""
    return {"name": "benchmark"}


@app.get("/verify")
def verify(authorization: Annotated[str, Header()]) -> dict[str, str]:
    """Answer a caller with a valid key. FastAPI runs a plain function on a thread, and bcrypt releases the GIL."""
    key_id, _, secret = authorization.removeprefix("Bearer ").partition(".")
    row = database().execute("SELECT name, hash FROM api_key WHERE id = ?", (key_id,)).fetchone()
    if row is None or not bcrypt.checkpw(secret.encode(), row[1]):
        raise HTTPException(401)
    return {"name": row[0]}
