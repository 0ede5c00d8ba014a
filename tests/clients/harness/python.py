"""The Python verifiers, driven by JSON lines: ``python python.py sync|aio``. For the scenarios of all languages.

One request per line on stdin, one answer per line on stdout, in any order. It exits when stdin ends.
"""

import asyncio
import json
import logging
import re
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import streams

import tumbler
import tumbler.aio
from tumbler import keyformat
from tumbler._cache import KeyRecord
from tumbler.decide import Demand, decide

ERRORS = {
    tumbler.Unavailable: "unavailable",
    tumbler.NotAllowed: "not_allowed",
    tumbler.InvalidRequest: "invalid_request",
}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
SPANS = ("max_staleness", "heartbeat", "timeout", "fixed_ttl")
LISTS = ("scopes", "allowed_cidrs", "required_scopes", "project_ids")
TIMES = ("revoke_time", "grace_expire_time", "expire_time")

Request = dict[str, Any]


def options_of(request: Request) -> Request:
    """Return the options in a request, in the verifiers' units."""
    options = {name: value for name, value in request.items() if name not in ("id", "op") and value is not None}
    if options.pop("any_project", False):
        options["project_id"] = tumbler.ANY_PROJECT
    return {name: value / 1000 if name in SPANS else value for name, value in options.items()}


def arguments_of(request: Request) -> Request:
    """Return the arguments of ``verify`` in a request, except the key."""
    names = ("required_scopes", "client_ip", "environment_id", "project_id")
    return {name: request[name] for name in names if request.get(name) is not None}


def shown(told: tumbler.Verification) -> Request:
    """Return a verification as JSON data."""
    expires = told.expire_time
    return {
        "valid": told.valid,
        "code": told.code.name,
        "key_id": told.key_id,
        "project_id": told.project_id,
        "environment_id": told.environment_id,
        "owner_id": told.owner_id,
        "name": told.name,
        "scopes": list(told.scopes),
        "metadata": dict(told.metadata),
        "expire_time": None if expires is None else expires.isoformat().replace("+00:00", "Z"),
        "cached": told.cached,
    }


def instant(text: str) -> int:
    """Return an RFC 3339 timestamp in microseconds."""
    match = re.fullmatch(r"(.{19})(?:\.(\d{1,6}))?Z", text)
    assert match is not None
    moment = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    return (moment - EPOCH) // timedelta(microseconds=1) + int((match[2] or "").ljust(6, "0"))


def record_of(fields: Request | None) -> KeyRecord | None:
    """Return the record of a row of verify.json."""
    if fields is None:
        return None
    known = {name: value for name, value in fields.items() if name not in ("revoke_time", "replaced_by_key_id")}
    for name, value in known.items():
        known[name] = tuple(value) if name in LISTS else instant(value) if name in TIMES else value
    return KeyRecord(key_id="0123456789abcdef", revoked="revoke_time" in fields, **known)


def decided(request: Request) -> Request:
    """Answer ``decide``."""
    asked = {name: tuple(value) if name in LISTS else value for name, value in request["request"].items()}
    return {"code": decide(record_of(request["record"]), Demand(**asked), instant(request["now"])).name}


def well_formed(request: Request) -> Request:
    """Answer ``well_formed``."""
    try:
        parsed = keyformat.parse(request["key"])
    except keyformat.MalformedKey:
        return {"well_formed": False}
    return {"well_formed": True, "prefix": parsed.prefix, "key_id": parsed.id}


def now_us() -> int:
    """Return microseconds since 1970."""
    return time.time_ns() // 1000


class Race:
    """The shared results of the callers of a race."""

    def __init__(self) -> None:
        self.over = False
        self.calls = self.cached = self.valid = 0
        self.last_valid: int | None = None
        self.first_denied: int | None = None
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def saw(self, began: int, told: tumbler.Verification | None, error: str = "") -> None:
        """Count one call."""
        ended = now_us()
        with self._lock:
            self.calls += 1
            if told is None:
                self.errors[error] += 1
                return
            self.cached += told.cached
            self.valid += told.valid
            if told:
                self.last_valid = max(self.last_valid or 0, began)
            else:
                self.first_denied = min(self.first_denied or ended, ended)

    def summary(self) -> Request:
        """Return the answer of ``race_stop``."""
        return {
            "calls": self.calls,
            "cached": self.cached,
            "valid": self.valid,
            "last_valid_began_us": self.last_valid,
            "first_denied_ended_us": self.first_denied,
            "errors": dict(self.errors),
        }


class Sync:
    """The operations with `tumbler.Verifier`. Each request runs in a thread."""

    def __init__(self) -> None:
        self.verifier: Any = None
        self.opened: Request = {}
        self.race = Race()
        self.racers: list[threading.Thread] = []
        self.service: Any = None
        self.served: Request = {}

    def run(self) -> None:
        """Answer every line of stdin."""
        lock = threading.Lock()

        def answer(line: str) -> None:
            text = json.dumps(self.answer(json.loads(line)))
            with lock:
                print(text, flush=True)

        with ThreadPoolExecutor(256) as threads:
            for line in sys.stdin:
                threads.submit(answer, line)
            self.race.over = True
        if self.verifier is not None:
            self.op_close({})

    def answer(self, request: Request) -> Request:
        """Return the answer to a request, even if it fails."""
        operation = getattr(self, f"op_{request.get('op')}", None)
        try:
            result = {"error": "op"} if operation is None else operation(request)
        except Exception as error:
            result = problem(error)
        return {"id": request.get("id"), **result}

    def op_open(self, request: Request) -> Request:
        options = options_of(request)
        try:
            verifier = tumbler.Verifier(**options)
        except ValueError as error:
            return {"error": "option", "message": str(error)}
        if self.verifier is not None:
            self.op_close({})
        self.verifier, self.opened = verifier, options
        return {}

    def op_close(self, _: Request) -> Request:
        self.verifier.close()
        if self.service is not None:
            self.service.stop(None)
            self.service = None
        return {}

    def op_serve(self, _: Request) -> Request:
        if self.service is None:
            self.service, self.served = streams.serve(self.verifier)
        return self.served

    def op_verify(self, request: Request) -> Request:
        return shown(self.verifier.verify(request["key"], **arguments_of(request)))

    def op_verify_many(self, request: Request) -> Request:
        seen = Many()
        arguments = arguments_of(request)

        def one(key: str) -> None:
            try:
                seen.saw(self.verifier.verify(key, **arguments))
            except tumbler.TumblerError as error:
                seen.errors[ERRORS[type(error)]] += 1

        with ThreadPoolExecutor(request.get("callers", 64)) as callers:
            list(callers.map(one, request["keys"]))
        return seen.summary()

    def op_race_start(self, request: Request) -> Request:
        race = self.race = Race()
        arguments = arguments_of(request)

        def call() -> None:
            while not race.over:
                began = now_us()
                try:
                    told = self.verifier.verify(request["key"], **arguments)
                except tumbler.TumblerError as error:
                    race.saw(began, None, ERRORS[type(error)])
                    time.sleep(0.0002)
                else:
                    race.saw(began, told)
                    time.sleep(0 if told.cached else 0.0002)

        self.racers = [threading.Thread(target=call, daemon=True) for _ in range(request.get("callers", 1))]
        for racer in self.racers:
            racer.start()
        return {}

    def op_race_stop(self, _: Request) -> Request:
        self.race.over = True
        for racer in self.racers:
            racer.join()
        return self.race.summary()

    def op_decide(self, request: Request) -> Request:
        return decided(request)

    def op_well_formed(self, request: Request) -> Request:
        return well_formed(request)

    def op_size(self, _: Request) -> Request:
        return {"size": self.verifier.remembered}

    def op_bench(self, request: Request) -> Request:
        return self._bench(self.verifier, request)

    def op_bench_uncached(self, request: Request) -> Request:
        with tumbler.Verifier(**{**self.opened, "cache_size": 0}) as verifier:
            return self._bench(verifier, request)

    def _bench(self, verifier: Any, request: Request) -> Request:
        verify, key, scopes = verifier.verify, request["key"], tuple(request.get("required_scopes", ()))
        for _ in range(100):
            verify(key, scopes)
        cached = 0
        began = time.perf_counter_ns()
        for _ in range(request["calls"]):
            cached += verify(key, scopes).cached
        return {"ns_per_call": (time.perf_counter_ns() - began) / request["calls"], "cached": cached}


class Many:
    """The counts of ``verify_many``."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.cached = 0

    def saw(self, told: tumbler.Verification) -> None:
        """Count one verdict."""
        self.codes[told.code.name] += 1
        self.cached += told.cached

    def summary(self) -> Request:
        """Return the answer."""
        return {"codes": dict(self.codes), "cached": self.cached, "errors": dict(self.errors)}


class Aio:
    """The operations with `tumbler.aio.Verifier`. Each request runs in a task."""

    def __init__(self) -> None:
        self.verifier: Any = None
        self.opened: Request = {}
        self.race = Race()
        self.racers: list[asyncio.Task[None]] = []
        self.services: Any = None
        self.served: Request = {}

    def run(self) -> None:
        """Answer every line of stdin."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        lines = asyncio.StreamReader(limit=2**26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        tasks = set()
        while line := await lines.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        self.race.over = True
        if tasks:
            await asyncio.wait(tasks)
        if self.verifier is not None:
            await self.op_close({})

    async def _answer(self, request: Request) -> None:
        operation = getattr(self, f"op_{request.get('op')}", None)
        try:
            result = {"error": "op"} if operation is None else await operation(request)
        except Exception as error:
            result = problem(error)
        print(json.dumps({"id": request.get("id"), **result}), flush=True)

    async def op_open(self, request: Request) -> Request:
        options = options_of(request)
        try:
            verifier = tumbler.aio.Verifier(**options)
        except ValueError as error:
            return {"error": "option", "message": str(error)}
        if self.verifier is not None:
            await self.op_close({})
        self.verifier, self.opened = verifier, options
        await verifier.__aenter__()
        return {}

    async def op_close(self, _: Request) -> Request:
        await self.verifier.close()
        if self.services is not None:
            services, self.services = self.services, None
            await services.stop()
        return {}

    async def op_serve(self, _: Request) -> Request:
        if self.services is None:
            self.services = streams.AioServices()
            self.served = await self.services.start(self.verifier)
        return self.served

    async def op_verify(self, request: Request) -> Request:
        return shown(await self.verifier.verify(request["key"], **arguments_of(request)))

    async def op_verify_many(self, request: Request) -> Request:
        seen = Many()
        arguments = arguments_of(request)
        keys = iter(request["keys"])

        async def caller() -> None:
            for key in keys:
                try:
                    seen.saw(await self.verifier.verify(key, **arguments))
                except tumbler.TumblerError as error:
                    seen.errors[ERRORS[type(error)]] += 1

        await asyncio.gather(*(caller() for _ in range(request.get("callers", 64))))
        return seen.summary()

    async def op_race_start(self, request: Request) -> Request:
        race = self.race = Race()
        arguments = arguments_of(request)

        async def call() -> None:
            while not race.over:
                began = now_us()
                try:
                    told = await self.verifier.verify(request["key"], **arguments)
                except tumbler.TumblerError as error:
                    race.saw(began, None, ERRORS[type(error)])
                    await asyncio.sleep(0.0002)
                else:
                    race.saw(began, told)
                    await asyncio.sleep(0 if told.cached else 0.0002)

        self.racers = [asyncio.create_task(call()) for _ in range(request.get("callers", 1))]
        return {}

    async def op_race_stop(self, _: Request) -> Request:
        self.race.over = True
        await asyncio.gather(*self.racers)
        return self.race.summary()

    async def op_decide(self, request: Request) -> Request:
        return decided(request)

    async def op_well_formed(self, request: Request) -> Request:
        return well_formed(request)

    async def op_size(self, _: Request) -> Request:
        return {"size": self.verifier.remembered}

    async def op_bench(self, request: Request) -> Request:
        return await self._bench(self.verifier, request)

    async def op_bench_uncached(self, request: Request) -> Request:
        async with tumbler.aio.Verifier(**{**self.opened, "cache_size": 0}) as verifier:
            return await self._bench(verifier, request)

    async def _bench(self, verifier: Any, request: Request) -> Request:
        verify, key, scopes = verifier.verify, request["key"], tuple(request.get("required_scopes", ()))
        for _ in range(100):
            await verify(key, scopes)
        cached = 0
        began = time.perf_counter_ns()
        for _ in range(request["calls"]):
            cached += (await verify(key, scopes)).cached
        return {"ns_per_call": (time.perf_counter_ns() - began) / request["calls"], "cached": cached}


def problem(error: Exception) -> Request:
    """Return the answer for an operation that raised."""
    return {"error": ERRORS.get(type(error), "internal"), "message": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    {"sync": Sync, "aio": Aio}[sys.argv[1]]().run()
