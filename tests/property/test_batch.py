"""A batch gives the same answers as Verify for each key, whatever the questions and the contents of the cache."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock, forged, on_loop
from tumbler.decide import Demand
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.freshness.glance import Glance
from tumbler_server.rpc.engine import lane_limits
from tumbler_server.rpc.gathering import Gathering
from tumbler_server.rpc.hotpath import HotPath
from tumbler_server.rpc.lanes import Lane
from tumbler_server.secrets.opaque_tokens import START
from tumbler_server.store.database import open_store
from tumbler_server.verify.verifier import Question, View

demands = st.builds(
    Demand,
    project_ids=st.sampled_from([(), ("acme",), ("other",)]),
    environment_id=st.sampled_from(["", "live", "test"]),
    required_scopes=st.sampled_from([(), ("orders:read",), ("orders:read", "users:read"), ("tumbler:keys:read",)]),
    client_ip=st.sampled_from(["", "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1"]),
)


class Pair:
    """Two servers on one database: one verifies batches, the other single keys."""

    def __init__(self, folder: str) -> None:
        url = f"sqlite:////{str(Path(folder)).lstrip('/')}/test.db"
        self.clock = FrozenClock()
        self.one, self.other = Domain(new_store(url), self.clock), Domain(open_store(url), self.clock)
        one, lanes = self.one, lane_limits(threads=16, cores=1)
        self.threads = ThreadPoolExecutor(1)
        self.reads, self.proofs = Gathering(lanes["reads"], one.verifier.read), Lane(lanes["proofs"])
        self.path = HotPath(one.verifier, Glance(one.tail, self.threads), self.reads, self.proofs)
        issued = [
            self.one.create(scopes=("orders:*",), environment_id="live"),
            self.one.create(scopes=("*",), allowed_cidrs=("192.0.2.0/24",)),
            self.one.create(project_id="other", scopes=("users:read",)),
            self.one.create(ttl=MINUTE),
            *(self.one.create() for _ in range(4)),
        ]
        self.one.revoke(issued[4].key.id)
        self.one.lifecycle.set_active(OPERATOR, issued[5].key.id, active=False)
        rotated = [self.one.rotate(issued[6].key.id, grace=0), self.one.rotate(issued[7].key.id, grace=2 * HOUR)]
        self.clock.advance(HOUR)
        texts = [key.text for key in (*issued, *rotated)]
        self.texts = [*texts, *map(forged, texts), texts[0][:-1], "", "garbage", "x" * 200]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Yield keys in every state, on two servers."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(folder)
        yield pair
        for close in (pair.reads.close, pair.proofs.close, pair.threads.shutdown):
            close()
        for domain in (pair.one, pair.other):
            domain.close()
            domain.store.close()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_batch_is_as_good_as_its_keys_one_by_one(pair: Pair, data: st.DataObject) -> None:
    """For any keys, demands and contents of the cache, a batch has equal verdicts in every field, in the same order."""
    known = data.draw(st.lists(st.sampled_from(pair.texts), max_size=5), label="known before")
    swept = data.draw(st.lists(st.sampled_from(pair.texts[:10]), max_size=3), label="forgotten since")
    asked = data.draw(
        st.lists(st.builds(Question, st.sampled_from(pair.texts), demands, st.just(START), st.booleans()), max_size=12),
        label="asked",
    )
    for domain in (pair.one, pair.other):
        domain.cache.forget_all()
    for text in known:
        pair.one.verifier.verify(Question(text))
    pair.one.cache.forget([text.split("_")[-2] for text in swept])
    view = View(pair.one.tail.catch_up())
    batch = on_loop(pair.path.verify_all(asked, view, "acme"))
    assert batch == [pair.other.verifier.verify(question) for question in asked]
