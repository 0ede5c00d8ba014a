"""The cache of proofs and records."""

import threading

import pytest

from tumbler_server.keys.record import Key
from tumbler_server.verify.cache import Entry, ProofCache


def key(number: int) -> Key:
    """Return a record whose id ends with this number."""
    return Key(id=f"{number:016}", project_id="acme")


def tag(number: int) -> bytes:
    """Return a tag."""
    return bytes([number]) * 32


@pytest.fixture
def cache() -> ProofCache:
    """Return a cache for three keys."""
    return ProofCache(3)


class TestPut:
    """Putting entries."""

    def test_the_record_is_kept(self, cache: ProofCache) -> None:
        """If nothing was forgotten since the record was read, proof and record are cached."""
        cache.put(key(1), tag(1), cache.generation)
        assert cache.get(key(1).id) == Entry(tag(1), key(1))

    def test_read_before_a_change(self, cache: ProofCache) -> None:
        """If any key was forgotten since the record was read, only the proof is cached: the record may be stale."""
        before = cache.generation
        cache.forget([key(2).id])
        cache.put(key(1), tag(1), before)
        assert cache.get(key(1).id) == Entry(tag(1), None)

    def test_overtaken(self, cache: ProofCache) -> None:
        """A record read before a change does not replace a newer one, even if it is put later."""
        older, newer = (Key(id=key(1).id, project_id="acme", revision=revision) for revision in (7, 8))
        cache.put(newer, tag(1), cache.generation)
        cache.put(older, tag(1), cache.generation)
        assert cache.get(key(1).id) == Entry(tag(1), newer)

    def test_newer(self, cache: ProofCache) -> None:
        """A record read after a change replaces an older one."""
        older, newer = (Key(id=key(1).id, project_id="acme", revision=revision) for revision in (7, 8))
        cache.put(older, tag(1), cache.generation)
        cache.put(newer, tag(1), cache.generation)
        assert cache.get(key(1).id) == Entry(tag(1), newer)

    def test_bounded(self, cache: ProofCache) -> None:
        """If more keys are put than fit, the least recently used is evicted."""
        for number in (1, 2, 3):
            cache.put(key(number), tag(number), cache.generation)
        cache.get(key(1).id)
        cache.put(key(4), tag(4), cache.generation)
        known = [number for number in (1, 2, 3, 4) if cache.get(key(number).id)]
        assert known == [1, 3, 4]

    def test_again(self, cache: ProofCache) -> None:
        """Putting a key again takes no second place."""
        for number in (1, 2, 3, 3, 3):
            cache.put(key(number), tag(number), cache.generation)
        assert all(cache.get(key(number).id) for number in (1, 2, 3))

    def test_unknown(self, cache: ProofCache) -> None:
        """A key that was never put is unknown."""
        assert cache.get(key(1).id) is None


class TestMemory:
    """The bound in bytes."""

    @staticmethod
    def large(number: int, revision: int = 1) -> Key:
        """Return a record of about 10 kB."""
        return Key(id=f"{number:016}", project_id="acme", metadata={"m": "v" * 5_000}, revision=revision)

    def test_bounded(self) -> None:
        """If records exceed the memory, the least recently used are evicted."""
        cache = ProofCache(1_000, most_memory=100_000)
        for number in range(50):
            cache.put(self.large(number), tag(1), cache.generation)
            assert cache.memory <= 100_000
        known = [number for number in range(50) if cache.get(key(number).id)]
        assert known == list(range(50 - len(known), 50))
        assert 7 <= len(known) <= 10

    def test_one_that_is_larger(self) -> None:
        """A record larger than the whole memory is cached alone."""
        cache = ProofCache(1_000, most_memory=5_000)
        for number in range(3):
            cache.put(self.large(number), tag(1), cache.generation)
        assert [number for number in range(3) if cache.get(key(number).id)] == [2]

    def test_what_goes_is_given_back(self) -> None:
        """Forgotten, replaced and evicted records use no memory."""
        cache = ProofCache(3)
        for number in (1, 2, 3):
            cache.put(key(number), tag(number), cache.generation)
        small = cache.memory
        for number in range(4, 20):
            cache.put(self.large(number), tag(1), cache.generation)
        cache.put(self.large(19, revision=2), tag(1), cache.generation)
        for number in (1, 2, 3):
            cache.put(key(number), tag(number), cache.generation)
        assert cache.memory == small
        cache.forget([key(1).id, key(2).id, key(3).id, key(4).id])
        assert 0 < cache.memory < small
        cache.forget([key(1).id])
        cache.forget_all()
        assert cache.memory == 0

    def test_few_chances(self) -> None:
        """A put passes over few recently used entries, however much memory it needs."""
        cache = ProofCache(10_000, most_memory=10_000_000)
        for number in range(5_000):
            cache.put(key(number), tag(1), cache.generation)
            cache.get(key(number).id)
        before = len(cache)
        cache.put(Key(id="x" * 16, project_id="acme", metadata={"m": "v" * 4_000_000}), tag(1), cache.generation)
        assert sum(cache._entries[each].used for each in cache._entries) >= len(cache) - 1 - 64
        assert len(cache) < before


class TestForget:
    """Forgetting what may be stale."""

    def test_the_proof_stays(self, cache: ProofCache) -> None:
        """The record of a changed key is dropped; its proof stays, because a key's secret never changes."""
        cache.put(key(1), tag(1), cache.generation)
        cache.forget([key(1).id])
        assert cache.get(key(1).id) == Entry(tag(1), None)

    def test_others_stay(self, cache: ProofCache) -> None:
        """Other keys' records stay."""
        cache.put(key(1), tag(1), cache.generation)
        cache.put(key(2), tag(2), cache.generation)
        cache.forget([key(1).id])
        assert cache.get(key(2).id) == Entry(tag(2), key(2))

    def test_unknown_keys(self, cache: ProofCache) -> None:
        """Forgetting an unknown key has no effect, and takes no place."""
        cache.put(key(1), tag(1), cache.generation)
        cache.forget([key(2).id, key(3).id, key(4).id, key(5).id])
        assert cache.get(key(2).id) is None
        assert cache.get(key(1).id) is not None

    def test_afterwards(self, cache: ProofCache) -> None:
        """Records read after forget are cached."""
        cache.forget([key(1).id])
        cache.put(key(1), tag(1), cache.generation)
        assert cache.get(key(1).id) == Entry(tag(1), key(1))

    def test_all(self, cache: ProofCache) -> None:
        """The whole cache can be forgotten, proofs included; records read before are not cached afterwards."""
        before = cache.generation
        cache.put(key(1), tag(1), before)
        cache.forget_all()
        assert cache.get(key(1).id) is None
        cache.put(key(1), tag(1), before)
        assert cache.get(key(1).id) == Entry(tag(1), None)


class TestTag:
    """The tag by which a presented key is cached."""

    def test_same_text(self, cache: ProofCache) -> None:
        """The same text has the same tag, and another text another."""
        assert cache.tag("one") == cache.tag("one") != cache.tag("other")

    def test_keyed(self) -> None:
        """Another cache gives the same text another tag, so a tag is useless elsewhere."""
        assert ProofCache(1).tag("one") != ProofCache(1).tag("one")

    def test_repr_is_silent(self) -> None:
        """The repr of an entry does not show the tag."""
        assert repr(Entry(tag(1), None)) == "Entry(key=None)"


def test_threads() -> None:
    """With many threads that put and forget, the cache does not exceed its size."""
    cache = ProofCache(10)
    barrier = threading.Barrier(4)

    def work(offset: int) -> None:
        barrier.wait()
        for number in range(500):
            cache.put(key(offset + number), tag(1), cache.generation)
            cache.forget([key(number).id])

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == sum(cache.get(key(number).id) is not None for number in range(800)) <= 10
