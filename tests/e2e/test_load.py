from tests.e2e.service import Service
from tests.load import load


def test_under_load_nothing_fails_and_nothing_is_lost(installed: Service) -> None:
    """While 16 callers create, change, use and end keys, no call fails, and every key ends as acknowledged."""
    done = load.run(installed.start(), seconds=2, callers=16)
    assert done.problems == []
    assert load.MIX.keys() <= done.took.keys()
    report = load.report(done, 2, "a short load")
    assert report.row_count == len(done.took) + 1


def test_a_key_that_was_lost_is_noticed(embedded: Service) -> None:
    """The load test reports the loss of acknowledged changes."""
    embedded.start()

    def lose(_: float, __: int, ___: int) -> None:
        embedded.tamper("UPDATE api_key SET name = 'somebody else', active = NOT active")

    assert load.run(embedded, seconds=1.5, callers=4, progress=lose).problems != []
