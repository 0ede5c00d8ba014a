"""What the commands ``tumbler-server audit …`` do: whether the log and the keys are what was written."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import rich.console
import rich.progress

from tumbler_server.audit import audit, copies
from tumbler_server.audit.audit import Audit
from tumbler_server.audit.copies import STRANGE, Comparison
from tumbler_server.clock import HOUR, rfc3339, system_clock
from tumbler_server.config import Installation
from tumbler_server.errors import Cause, SetupError, StoreUnavailable, explain
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, open_store


def verify(installation: Installation, copy: Path | None, retention: int | None, as_json: bool) -> bool:
    """Audit, compare with a copy if there is one, and print what was found. Return whether nothing is wrong."""
    with _audited(installation) as store:
        with contextlib.closing(_Meter()) as meter:
            found = _found(store, meter, retention)
        compared = None
        if copy is not None:
            with copy.open(encoding="utf-8", errors="replace") as lines:
                compared = _compared(store, lines, retention)
    problems = [*found.problems, *(() if compared is None else compared.problems)]
    if as_json:
        print(json.dumps(_audit_fields(found, compared, problems)))
    elif not problems:
        print(f"ok: {found.events:,} events match the hash chain, and {found.keys:,} keys match their events")
        if found.removed:
            since = _instant(found.since)
            print(
                f"the log begins with event {found.removed + 1:,} of {since}; of older events, each key's last is kept"
            )
        if found.untold:
            print(f"{found.untold:,} keys have no event with their row yet: they are compared after their next change")
        if compared:
            told = f"{compared.removed:,} are of events that are no longer kept"
            print(f"the copy: {compared.compared:,} lines match the log; {told}")
    else:
        print("\n".join(problems))
    return not problems


def export(installation: Installation, after: int) -> None:
    """Print all events after a revision, one JSON object per line."""
    with _audited(installation) as store:
        try:
            for line in copies.lines(store, after):
                print(line)
        except STRANGE as failure:
            raise _unreadable(failure) from None


def head(installation: Installation) -> None:
    """Print one line for the whole log."""
    with _audited(installation) as store:
        try:
            print(copies.head(store))
        except STRANGE as failure:
            raise _unreadable(failure) from None


def _found(store: Store, meter: "_Meter", retention: int | None) -> Audit:
    """Audit; that the database cannot be read to its end is a problem like others."""
    try:
        return audit.run(store, progress=meter, retention=retention)
    except StoreUnavailable as failure:
        if failure.cause is not Cause.DAMAGED:
            raise
        return Audit(0, (explain(failure),))
    except STRANGE as failure:
        return Audit(0, (f"the database holds a value that this program never writes ({type(failure).__name__})",))


def _compared(store: Store, lines: Iterable[str], retention: int | None) -> Comparison:
    """Compare with a copy; that the log cannot be read is a problem beside those that were found before."""
    try:
        return copies.against(store, lines, audit.removable(system_clock, retention))
    except STRANGE as failure:
        return Comparison(0, 0, (f"the log cannot be compared with the copy: {_strange(failure)}",))


def _unreadable(failure: Exception) -> SetupError:
    return SetupError(f"the log cannot be read: {_strange(failure)}. Run `tumbler-server audit verify`")


def _strange(failure: Exception) -> str:
    return f"its head or an event is gone, or holds a value that this program never writes ({type(failure).__name__})"


def _instant(moment: int) -> str | None:
    try:
        return rfc3339(moment)
    except STRANGE:
        return None


@contextlib.contextmanager
def _audited(installation: Installation) -> Iterator[Store]:
    store = open_store(installation.database_url, timeout=HOUR)  # it reads everything
    try:
        migrations.check(store)
        yield store
    finally:
        store.close()


def _audit_fields(found: Audit, compared: Comparison | None, problems: list[str]) -> dict[str, object]:
    fields: dict[str, object] = {
        "ok": not problems,
        "events": found.events,
        "from_revision": found.removed + 1,
        "since": _instant(found.since) if found.since else None,
        "removed": found.removed,
        "keys": found.keys,
        "keys_untold": found.untold,
        "problems": problems,
    }
    if compared is not None:
        fields["copy"] = {"compared": compared.compared, "removed": compared.removed}
    return fields


class _Meter:
    """Shows on a terminal how far a long command is."""

    def __init__(self) -> None:
        self._progress = rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), console=rich.console.Console(stderr=True), transient=True
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that so much of something is done."""
        if not self._progress.console.is_terminal:
            return
        self._progress.start()  # again and again is the same as once
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what)
        self._progress.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._progress.refresh()

    def close(self) -> None:
        """Clear the line."""
        if self._tasks:
            self._progress.stop()
