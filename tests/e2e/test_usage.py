"""The last-used times of keys when a server stops."""

import time

from tests.e2e.service import Service
from tumbler import keyformat


def test_uses_are_written_before_the_server_ends(installed: Service) -> None:
    """A stopping server writes the last use of each key; a refused Verify is not a use."""
    installed.start()
    used, refused, untouched = (installed.create(name=name) for name in ("used", "refused", "untouched"))
    before = time.time()
    assert installed.verdict(used.key) == "VALID"
    after = time.time()
    assert installed.verdict(refused.key, required_scopes=["a:b"]) == "INSUFFICIENT_SCOPE"
    etag = installed.get(used.api_key.id).etag
    assert installed.stop() == 0
    installed.start()
    found = installed.get(used.api_key.id)
    assert before <= found.last_used_time.ToNanoseconds() / 1e9 <= after
    assert (found.etag, found.update_time) == (etag, used.api_key.update_time)
    for other in (refused, untouched):
        assert not installed.get(other.api_key.id).HasField("last_used_time")
    installed.audit()


def test_a_calling_key_is_used_too(installed: Service) -> None:
    """A call with a key counts as a use of the calling key."""
    installed.start()
    before = time.time()
    installed.caller("tumbler:keys:read").get(installed.create().api_key.id)
    caller = installed.caller("tumbler:keys:read")
    caller.get(keyformat.parse(caller.key).id)
    assert installed.stop() == 0
    installed.start()
    assert installed.get(keyformat.parse(caller.key).id).last_used_time.ToNanoseconds() / 1e9 >= before
