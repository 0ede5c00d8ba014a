"""keyshield in a FastAPI application, set up as its documentation shows.

Two things are faster than there: the table is created once, not checked at each request, and SQLite is in WAL mode.

CACHE=1 uses its CachedApiKeyService, in memory. DELAY=0 removes the pause of 100 to 300 ms that it makes in each
verification by default.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from aiocache import SimpleMemoryCache
from fastapi import Depends, FastAPI
from keyshield import ApiKey, ApiKeyService
from keyshield.api import create_depends_api_key
from keyshield.hasher.argon2 import Argon2ApiKeyHasher
from keyshield.repositories.sql import SqlAlchemyApiKeyRepository
from keyshield.services.cached import CachedApiKeyService
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

folder = Path(os.environ["PEER_FOLDER"])
engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/keys.db")
sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
hasher = Argon2ApiKeyHasher(pepper="a pepper of this benchmark")
cache = SimpleMemoryCache()
delay = {} if os.environ.get("DELAY") != "0" else {"min_delay": 0.0, "max_delay": 0.0}


def service(session: AsyncSession) -> ApiKeyService:
    """Return the service on one request's session."""
    repository = SqlAlchemyApiKeyRepository(session)
    if os.environ.get("CACHE") == "1":
        return CachedApiKeyService(repo=repository, hasher=hasher, cache=cache, **delay)
    return ApiKeyService(repo=repository, hasher=hasher, **delay)


async def with_session() -> AsyncIterator[AsyncSession]:
    """Yield a request's session, in a transaction."""
    async with sessions() as session, session.begin():
        yield session


async def with_service(session: Annotated[AsyncSession, Depends(with_session)]) -> ApiKeyService:
    """Return a request's service."""
    return service(session)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the table and a key."""
    async with engine.connect() as connection:
        await connection.exec_driver_sql("PRAGMA journal_mode = wal")
    async with sessions() as session, session.begin():
        await SqlAlchemyApiKeyRepository(session).ensure_table(async_engine=engine)
    async with sessions() as session, session.begin():
        _, text = await service(session).create(name="benchmark", scopes=["orders"])
    (folder / "key").write_text(text)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/noop")
async def noop() -> dict[str, str]:
    """Answer without a check of a key."""
    return {"name": "benchmark"}


@app.get("/verify")
async def verify(key: Annotated[ApiKey, Depends(create_depends_api_key(with_service))]) -> dict[str, str | None]:
    """Answer a caller with a valid key."""
    return {"name": key.name}
