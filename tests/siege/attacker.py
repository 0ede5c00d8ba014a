"""The process that attacks."""

import asyncio
import multiprocessing
import os
import time
from multiprocessing.connection import Connection

from tests.siege.attacks import BY_NAME
from tests.siege.scene import Scene, Tally

FINISHING = 30.0
"""Seconds of extra time for an attack that checks its own outcome."""


class Attacker:
    """A process that attacks on command, as often as needed."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_attack, args=(name, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, scene: Scene) -> None:
        """Start the attack."""
        self._pipe.send(scene)

    def end(self, finish: bool = False) -> tuple[Tally, float]:
        """Stop the attack, after it has ended by itself if ``finish``. Return its tally and its share of a core."""
        self._pipe.send(finish)
        if not self._pipe.poll(FINISHING + 10):
            raise AssertionError("the attacker does not end")
        answer: tuple[Tally, float] = self._pipe.recv()
        return answer

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _attack(name: str, pipe: Connection) -> None:
    os.nice(5)
    while True:
        scene = pipe.recv()
        began, used = time.monotonic(), time.process_time()
        tally = asyncio.run(_until_told(name, scene, pipe))
        pipe.send((tally, (time.process_time() - used) / (time.monotonic() - began)))


async def _until_told(name: str, scene: Scene, pipe: Connection) -> Tally:
    tally = Tally()
    attacking = asyncio.ensure_future(BY_NAME[name].run(scene, tally))
    while not pipe.poll():
        await asyncio.sleep(0.05)
    if pipe.recv() and not (await asyncio.wait([attacking], timeout=FINISHING))[0]:
        tally.problems.append("the attack was not finished")
    attacking.cancel()
    (ended,) = await asyncio.gather(attacking, return_exceptions=True)
    if isinstance(ended, Exception):
        tally.problems.append(f"the attack broke off: {type(ended).__name__}: {ended}")
    if not tally.counts:
        tally.problems.append("the attack did not happen")
    return tally
