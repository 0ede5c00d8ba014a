"""Many keys, many callers, and changes during their calls."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.conformance.scene import PROMPTLY, Scene
from tests.e2e.service import eventually
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb

LOT = 50


def test_64_callers_at_the_same_time(crowded_scene: Scene, many_keys: list[str]) -> None:
    """2,000 keys verified by 64 callers are all valid. Once cached, they cost no call."""
    scene, keys = crowded_scene, many_keys[:2_000]
    scene.open()

    def all_remembered() -> bool:
        before = scene.calls()
        counted = scene.verify_many(keys)
        assert counted["codes"] == {"VALID": 2_000}
        return counted["cached"] == 2_000 and scene.calls() == before

    eventually(all_remembered, PROMPTLY)
    assert scene.size() >= 2_000


def test_more_keys_than_there_is_room(crowded_scene: Scene, many_keys: list[str]) -> None:
    """10,000 keys through a cache of 1,000 are all verified, and at most 1,000 are cached at any time."""
    scene = crowded_scene
    scene.open(cache_size=1_000)
    for begin in range(0, len(many_keys), 2_500):
        assert scene.verify_many(many_keys[begin : begin + 2_500])["codes"] == {"VALID": 2_500}
        assert scene.size() <= 1_000
    assert scene.size() > 900
    scene.remembered(many_keys[0])
    assert scene.size() <= 1_000


def test_more_bytes_than_there_is_room(crowded_scene: Scene, many_keys: list[str]) -> None:
    """2,000 keys through a cache of 1 MiB are all verified, and each counts at least 1,024 bytes."""
    scene = crowded_scene
    scene.open(cache_bytes=2**20)
    assert scene.verify_many(many_keys[:2_000])["codes"] == {"VALID": 2_000}
    assert 400 < scene.size() < 1_024
    scene.remembered(many_keys[0])
    assert scene.size() < 1_024


def test_a_revocation_in_the_middle_of_calls(crowded_scene: Scene) -> None:
    """Callers who verify a key again and again are denied after its revocation, and from then on always."""
    scene = crowded_scene
    scene.open()
    for text in scene.crowd(20):
        scene.remembered(text)
        scene.program.call("race_start", key=text, callers=4)
        scene.service.revoke(keyformat.parse(text).id)
        scene.becomes(text, "REVOKED")
        ended = scene.program.call("race_stop")
        assert ended["valid"] > 0
        assert ended["first_denied_ended_us"] is not None
        assert ended["last_valid_began_us"] <= ended["first_denied_ended_us"]
        assert not ended.get("errors")


@pytest.mark.parametrize("lots", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_an_answer_that_a_revocation_overtakes_is_not_remembered(crowded_scene: Scene, lots: int) -> None:
    """Of hundreds of keys revoked during their verification, none is valid once the stream has delivered the events.

    A sentinel key revoked after them shows that it has: the sentinel is cached, so only the stream can evict it.
    """
    scene = crowded_scene
    scene.open()
    keys, sentinels = scene.crowd(lots * LOT), scene.crowd(lots)
    with ThreadPoolExecutor(4) as pool:
        for number, sentinel in enumerate(sentinels):
            lot = keys[number * LOT : (number + 1) * LOT]
            # Half of them are cached, and half are not known yet.
            assert scene.verify_many(lot[::2])["codes"] == {"VALID": LOT // 2}
            scene.remembered(sentinel)
            verifying, revoking = [], []
            for text in lot:
                verifying.append(pool.submit(scene.code, text))
                revoking.append(scene.service.begin("Revoke", pb.RevokeRequest(key_id=keyformat.parse(text).id)))
                verifying.append(pool.submit(scene.code, text))
            assert {each.result() for each in verifying} <= {"VALID", "REVOKED"}
            for each in revoking:
                each.result()
            scene.service.revoke(keyformat.parse(sentinel).id)
            scene.becomes(sentinel, "REVOKED")
            assert scene.verify_many(lot)["codes"] == {"REVOKED": LOT}
