"""Callers that verify known keys continuously and record their latencies, which are those that users see."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.e2e.service import Client
from tests.harness import Refused
from tests.histories.checker import quantile

CALLERS = 4


@dataclass
class Regulars:
    """Their results: the duration of each call in nanoseconds, and every answer that was not VALID."""

    took: list[int] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def p99(self) -> int:
        """Return the 99th percentile, in nanoseconds."""
        return quantile(self.took, 0.99)


def present(target: str, key: str, texts: Sequence[str], rest: float, over: Callable[[], bool]) -> Regulars:
    """Verify known keys by four callers until ``over()``. Between calls, each rests ``rest`` seconds on average."""
    met = Regulars()

    def call(number: int) -> None:
        client = Client(target, key)
        chosen = random.Random(number)  # noqa: S311 - no secret
        client.verdict(texts[0])  # connects, and caches the caller's own key
        while not over():
            began = time.monotonic_ns()
            try:
                verdict = client.verdict(chosen.choice(texts))
            except Refused as refused:
                verdict = refused.code.name
            met.took.append(time.monotonic_ns() - began)
            if verdict != "VALID":
                met.wrong[verdict] += 1
            time.sleep(chosen.uniform(0, 2 * rest))
        client.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return met
