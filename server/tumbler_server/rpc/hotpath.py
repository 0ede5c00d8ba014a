"""Serves a Verify on the loop: immediately from memory, the rest with bounded threads behind it.

``verify.verifier`` has the stages. This module only decides which call waits for which of them.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from typing import cast

from tumbler.decide import Code
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.freshness.glance import Glance, outcome
from tumbler_server.keys.record import Key
from tumbler_server.rpc.gathering import MOST, Gathering
from tumbler_server.rpc.lanes import RETRY, Lane
from tumbler_server.rpc.spreading import spread
from tumbler_server.shares import PROOFS_OF_A_KEY
from tumbler_server.verify.verifier import Doubtful, Question, Unknown, Verdict, Verifier, View, reached, unknown_change

MOST_PROVEN = 64
"""Maximum number of keys of one batch that bcrypt checks. Keys proven by then are cached for the next call."""


class HotPath:
    """Returns views, records and verdicts. Use it on the loop's thread only."""

    def __init__(self, verifier: Verifier, glance: Glance, reads: Gathering, proofs: Lane) -> None:
        self._verifier = verifier
        self._glance = glance
        self._reads = reads
        self._proofs = proofs
        self._flights: dict[bytes, _Flight] = {}
        self._of_a_key: Counter[str] = Counter()

    def view_now(self) -> View | None:
        """Return a view for a call that began before this, if memory has one."""
        try:
            position = self._glance.now()
        except StoreUnavailable:
            return None
        return None if position is None else View(position)

    async def view(self, at_least: int = 0, fully_consistent: bool = False) -> View:
        """Return a view for a call that began before this. Raises ``StoreUnavailable``."""
        try:
            position = self._glance.now(at_least, fully_consistent)
            return View(await self._glance.fresh() if position is None else position)
        except StoreUnavailable:
            view = self._verifier.last_resort(at_least, fully_consistent)
            if view is None:
                raise
            return view

    async def find(self, unknown: Unknown, party: str) -> Key | None:
        """Read the record of a presented key, and return it, or None if the key is wrong.

        Raises ``Overloaded`` and ``StoreUnavailable``.
        """
        found = await self._reads.find(unknown, party)
        return await self._prove(found) if isinstance(found, Doubtful) else found

    def verify_now(self, question: Question, view: View) -> Verdict | None:
        """Return the verdict on a presented key, if everything it needs is in memory."""
        at_least = question.at_least
        if question.fully_consistent or view.position < at_least.revision:
            return None
        if at_least.mark and not self._glance.known(at_least):
            return None
        key = self._verifier.recall(question.text)
        if isinstance(key, Unknown):
            return None
        return self._verifier.judge(key, question.demand, view, self._verifier.now())

    async def verify(self, question: Question, view: View, party: str) -> Verdict:
        """Return the verdict on a presented key. Raises what ``Verifier.verify`` does, and ``Overloaded``."""
        text, demand, at_least, fully_consistent = question
        if fully_consistent or view.position < at_least.revision:
            view = await self.view(at_least.revision, fully_consistent)
        if not reached(question, view) or (at_least.mark and not all(await self._glance.holds([at_least]))):
            raise unknown_change()
        key = self._verifier.recall(text)
        if isinstance(key, Unknown):
            key = await self.find(key, party)
        return self._verifier.judge(key, demand, view, self._verifier.now())

    async def verify_all(self, questions: Sequence[Question], view: View, party: str) -> list[Verdict | None]:
        """Return the verdicts on many keys; None for each question that names a change which is not in the log.

        All rest on one view and one instant. Raises ``StoreUnavailable`` and ``Overloaded``; keys proven by then stay
        cached.
        """
        at_least = max((question.at_least.revision for question in questions), default=0)
        fully_consistent = any(question.fully_consistent for question in questions)
        if fully_consistent or view.position < at_least:
            view = await self.view(at_least, fully_consistent)
        held = await self._glance.holds([question.at_least for question in questions]) if at_least else repeat(True)
        verifier = self._verifier
        known = await spread(verifier.recall(question.text) for question in questions)
        unknown = {key.text: key for key in known if isinstance(key, Unknown)}
        found = await self._find_all(list(unknown.values()), party)
        now = verifier.now()
        if not (unknown or at_least):  # nearly always
            demands = (question.demand for question in questions)
            proven = cast("list[Key | Code | None]", known)
            return [*await spread(map(verifier.judge, proven, demands, repeat(view), repeat(now)))]

        def judge(question: Question, key: Key | Code | Unknown | None, of_this_history: bool) -> Verdict | None:
            record = found[key.text] if isinstance(key, Unknown) else key
            settled = of_this_history and reached(question, view)
            return verifier.judge(record, question.demand, view, now) if settled else None

        return await spread(map(judge, questions, known, held))

    async def _find_all(self, unknown: Sequence[Unknown], party: str) -> dict[str, Key | None]:
        found: dict[str, Key | None] = {}
        doubtful: list[Doubtful] = []
        for start in range(0, len(unknown), MOST):
            asked = unknown[start : start + MOST]
            # Together they need one query, or a few; one after the other, they would need one each.
            answers = await asyncio.gather(*(self._reads.find(each, party) for each in asked))
            for each, answer in zip(asked, answers, strict=True):
                if isinstance(answer, Doubtful):
                    doubtful.append(answer)
                else:
                    found[each.text] = answer
        for number, each_doubtful in enumerate(doubtful):
            if number >= MOST_PROVEN:
                raise Overloaded(retry_after=RETRY)
            found[each_doubtful.asked.text] = await self._prove(each_doubtful)
        return found

    async def _prove(self, doubtful: Doubtful) -> Key | None:
        """Check a presented key with bcrypt. Callers that present the same key share one run."""
        asked = doubtful.asked
        flight = self._flights.get(asked.tag)
        if flight is None:
            if self._of_a_key[asked.id] >= PROOFS_OF_A_KEY.most:  # a wrong secret costs as much as the right one
                raise Overloaded(retry_after=RETRY)
            flight = self._flights[asked.tag] = _Flight()
            self._of_a_key[asked.id] += 1
            flight.task = asyncio.ensure_future(self._fly(flight, doubtful))
            flight.task.add_done_callback(functools.partial(self._land, flight, asked))
        flight.waiting += 1
        try:
            proven = await outcome(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.begun:
                # No caller is left, and none may join. A run that has begun continues, and counts against the key's
                # limit.
                self._forget(flight, asked.tag)
                flight.task.cancel()
        # Callers share the proof, which never changes, but not the record: another caller may have read its record
        # before a change that this call must see.
        return doubtful.key if proven else None

    async def _fly(self, flight: "_Flight", doubtful: Doubtful) -> bool:
        party = doubtful.key.project_id
        await self._proofs.enter(party)
        flight.begun = True
        return await self._proofs.use(party, self._verifier.prove, doubtful) is not None

    def _land(self, flight: "_Flight", asked: Unknown, _: object) -> None:
        self._forget(flight, asked.tag)
        self._of_a_key[asked.id] -= 1
        if not self._of_a_key[asked.id]:
            del self._of_a_key[asked.id]
        if not flight.task.cancelled():
            flight.task.exception()  # marks it as retrieved, or asyncio would log it

    def _forget(self, flight: "_Flight", tag: bytes) -> None:
        if self._flights.get(tag) is flight:
            del self._flights[tag]


class _Flight:
    """A run of bcrypt: how many callers wait for it, and whether it has a place."""

    __slots__ = ("begun", "task", "waiting")
    task: "asyncio.Task[bool]"

    def __init__(self) -> None:
        self.waiting = 0
        self.begun = False
