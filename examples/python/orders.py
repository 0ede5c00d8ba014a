"""Orders, behind API keys: FastAPI and one dependency."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI

from tumbler import Verification, aio
from tumbler.guards.fastapi import RequireKey

verifier = aio.Verifier(os.environ["TUMBLER_ENDPOINT"], api_key=os.environ["TUMBLER_API_KEY"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the verifier with the application."""
    async with verifier:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/orders")
async def orders(caller: Annotated[Verification, Depends(RequireKey(verifier, "orders:read"))]) -> dict[str, object]:
    """List the caller's orders."""
    return {"orders": [], "owner": caller.owner_id}


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) as listener:
        print(f"listening on http://127.0.0.1:{os.environ['PORT']}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
