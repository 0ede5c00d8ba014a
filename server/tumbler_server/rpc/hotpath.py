"""The way of a Verify on the loop: what is in memory is answered at once, the rest by bounded threads behind it.

The stages are ``keys.verifier``'s. Here is only who waits for which of them.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence

from tumbler.decide import Code
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.events.glance import Glance
from tumbler_server.keys.record import Key
from tumbler_server.keys.verifier import Doubtful, Question, Unknown, Verdict, Verifier, View, reached
from tumbler_server.rpc.gathering import MOST, Gathering
from tumbler_server.rpc.lanes import RETRY, Lane
from tumbler_server.shares import PROOFS_OF_A_KEY

SLICE = 32
"""Keys of a batch that are judged in one turn of the loop: well under a millisecond."""

MOST_PROVEN = 64
"""Keys of one batch that are proven by bcrypt; what is proven by then is remembered for the next call."""


class HotPath:
    """Gives views, finds records and gives verdicts. For one loop's thread."""

    def __init__(self, verifier: Verifier, glance: Glance, reads: Gathering, proofs: Lane) -> None:
        self._verifier = verifier
        self._glance = glance
        self._reads = reads
        self._proofs = proofs
        self._flights: dict[bytes, _Flight] = {}
        self._of_a_key: Counter[str] = Counter()

    async def view(self, at_least: int = 0, exactly: bool = False) -> View:
        """Take a view for a call that began before this. Raises ``StoreUnavailable``."""
        try:
            position = self._glance.now(at_least, exactly)
            return View(await self._glance.fresh() if position is None else position)
        except StoreUnavailable:
            view = self._verifier.last_resort(at_least, exactly)
            if view is None:
                raise
            return view

    async def find(self, unknown: Unknown, party: str) -> Key | None:
        """Return the record of a presented key that has to be read, None where it is no key.

        Raises ``Overloaded`` and ``StoreUnavailable``.
        """
        found = await self._reads.find(unknown, party)
        return await self._prove(found) if isinstance(found, Doubtful) else found

    async def verify(self, question: Question, view: View, party: str) -> Verdict:
        """Return the verdict on a presented key. Raises what ``Verifier.verify`` does, and ``Overloaded``."""
        text, demand, at_least, exactly = question
        if exactly or view.position < at_least:
            view = await self.view(at_least, exactly)
            reached(question, view)
        key = self._verifier.recall(text)
        if isinstance(key, Unknown):
            key = await self.find(key, party)
        return self._verifier.judge(key, demand, view, self._verifier.now())

    async def verify_all(self, questions: Sequence[Question], view: View, party: str) -> list[Verdict | None]:
        """Return the verdicts on many keys; None for each that names a revision which does not exist.

        All rest on one view and one instant. Raises ``Overloaded``, where some of them have been proven and remembered,
        and ``StoreUnavailable``.
        """
        at_least = max((question.at_least for question in questions), default=0)
        exactly = any(question.exactly for question in questions)
        if exactly or view.position < at_least:
            view = await self.view(at_least, exactly)
        verifier = self._verifier
        known: list[Key | Code | Unknown | None] = []
        for start in range(0, len(questions), SLICE):
            known += [verifier.recall(question.text) for question in questions[start : start + SLICE]]
            await asyncio.sleep(0)
        unknown = {key.text: key for key in known if isinstance(key, Unknown)}
        found = await self._find_all(list(unknown.values()), party)
        now = verifier.now()
        verdicts: list[Verdict | None] = []
        for start in range(0, len(questions), SLICE):
            for question, key in zip(questions[start : start + SLICE], known[start : start + SLICE], strict=True):
                record = found[key.text] if isinstance(key, Unknown) else key
                settled = question.at_least <= view.position
                verdicts.append(verifier.judge(record, question.demand, view, now) if settled else None)
            await asyncio.sleep(0)
        return verdicts

    async def _find_all(self, unknown: Sequence[Unknown], party: str) -> dict[str, Key | None]:
        found: dict[str, Key | None] = {}
        doubtful: list[Doubtful] = []
        for start in range(0, len(unknown), MOST):
            asked = unknown[start : start + MOST]
            # One after the other would be a query for each: together they are one, or a few.
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
        """Have bcrypt tell whether a presented key is the right one; those who present the same one share a run."""
        tag, key_id = doubtful.asked.tag, doubtful.asked.id
        flight = self._flights.get(tag)
        if flight is None:
            if self._of_a_key[key_id] >= PROOFS_OF_A_KEY.most:  # a wrong secret costs as much as the right one
                raise Overloaded(retry_after=RETRY)
            flight = self._flights[tag] = _Flight(self._verifier, doubtful)
            flight.task = asyncio.ensure_future(self._proofs.run(doubtful.key.project_id, flight.run))
            self._of_a_key[key_id] += 1
            flight.task.add_done_callback(functools.partial(self._land, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.begun:
                self._forget(flight)  # so that nobody joins what is cancelled
                flight.task.cancel()

    def _land(self, flight: "_Flight", task: "asyncio.Task[Key | None]") -> None:
        self._forget(flight)
        key_id = flight.doubtful.asked.id
        self._of_a_key[key_id] -= 1
        if not self._of_a_key[key_id]:
            del self._of_a_key[key_id]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear of it

    def _forget(self, flight: "_Flight") -> None:
        tag = flight.doubtful.asked.tag
        if self._flights.get(tag) is flight:
            del self._flights[tag]


class _Flight:
    """A run of bcrypt, and how many wait for it. One that has begun goes on and counts, also where nobody is left."""

    __slots__ = ("_verifier", "begun", "doubtful", "task", "waiting")

    task: "asyncio.Task[Key | None]"

    def __init__(self, verifier: Verifier, doubtful: Doubtful) -> None:
        self._verifier = verifier
        self.doubtful = doubtful
        self.begun = False
        self.waiting = 0

    def run(self) -> Key | None:
        """Prove the key; for a thread."""
        self.begun = True
        return self._verifier.prove(self.doubtful)
