"""Break the code in ways that matter, one at a time, and see that a test notices each.

    python tests/mutants/run.py [NAME …]

Each mutant is one replaced piece of code in a copy of the code, which the tests then import in its place. Exit code 1
where a mutant survives, or no longer fits the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# One database is enough: the suite itself holds both to the same rules.
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-k", "not postgresql and not cockroachdb")
_TIMEOUT = 300

PACKAGES = (ROOT / "server" / "tumbler_server", ROOT / "clients" / "python" / "src" / "tumbler")


@dataclass(frozen=True)
class Mutant:
    """One breakage: in ``file``, ``old`` becomes ``new``, and one of ``tests`` must fail.

    ``file`` is one of the server's package, or of the client's where it says so (``tumbler/…``).
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "the cache drops nothing when a key is revoked",
        "events/tail.py",
        "self._follower.forget({event.key_id for event in news if event.type not in ANNOUNCEMENTS})",
        "self._follower.forget(set())",
        "tests/rpc/test_revoke.py",
    ),
    Mutant(
        "a reader that was overtaken brings an older record back",
        "keys/cache.py",
        "known.key.revision > key.revision",
        "False",
        "tests/unit/test_cache.py",
    ),
    Mutant(
        "the log is not followed at all",
        "events/tail.py",
        "        if head == place:\n",
        "        if True:\n",
        "tests/unit/test_tail.py tests/rpc/test_revoke.py",
    ),
    Mutant(
        "a position counts as confirmed though nothing was read",
        "events/tail.py",
        "        try:\n            version = ",
        "        self._confirmed = began\n        try:\n            version = ",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a position counts as confirmed at the answer and not at the question",
        "events/tail.py",
        "max(self._confirmed, began)",
        "self._uptime()",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "the reader skips a revision",
        "events/tail.py",
        "if event.revision > self._head.revision]",
        "if event.revision > self._head.revision + 1]",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a position is good for ever",
        "events/tail.py",
        "and self.age <= self._max_staleness",
        "",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a position is good whatever the caller asks for",
        "events/tail.py",
        "            not exactly\n            and position >= at_least\n",
        "            True\n",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "what other workers committed is not looked at",
        "events/tail.py",
        "            and position >= self._board.newest()\n",
        "",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a worker does not tell the others what it committed",
        "events/tail.py",
        "        self._board.post(revision)  # also",
        "        if revision > self.position: self._board.post(revision)  # also",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a restored database is followed as if nothing had been",
        "events/tail.py",
        "and log.follows(place.hash, events[0])",
        "",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "what this connection committed does not show",
        "store/sqlite.py",
        'return thread.serial, thread.watch.execute("PRAGMA data_version").get',
        "return thread.serial, 0",
        "tests/unit/test_notice.py",
    ),
    Mutant(
        "verdicts are cached",
        "keys/verifier.py",
        "code = decide(key, demand, now)",
        'code = vars(self).setdefault("verdicts", {}).setdefault((key and key.id, demand), decide(key, demand, now))',
        "tests/rpc/test_revoke.py",
    ),
    Mutant(
        "--stale-if-error lets everybody in without being asked for",
        "keys/verifier.py",
        "self._tail.last_resort(self._stale_if_error) if self._stale_if_error else None",
        "self._tail.position",
        "tests/rpc/test_verify_away.py",
    ),
    Mutant(
        "--stale-if-error has no end",
        "events/tail.py",
        "or self.age > self._max_staleness + stale_if_error",
        "",
        "tests/unit/test_tail.py tests/rpc/test_verify_away.py",
    ),
    Mutant(
        "a record that was read before a change is cached after it",
        "keys/cache.py",
        " if generation == self.generation else Entry(tag, None, _PROOF)",
        "",
        "tests/unit/test_cache.py",
    ),
    Mutant(
        "remembered keys take any memory",
        "keys/cache.py",
        " or self._memory + memory > self._most_memory",
        "",
        "tests/unit/test_cache.py",
    ),
    Mutant(
        "a request is not counted before it is copied",
        "rpc/counting.py",
        "if len(read(request)) > most:\n            raise",
        "if False:\n            raise",
        "tests/unit/test_counting.py",
    ),
    Mutant(
        "a page that ends early is the last",
        "keys/paging.py",
        "return tuple(entries), True",
        "return tuple(entries), False",
        "tests/unit/test_sizes.py",
    ),
    Mutant(
        "a project has any number of keys",
        "keys/projects.py",
        "if row.keys > most:",
        "if False:",
        "tests/rpc/test_limits.py",
    ),
    Mutant(
        "secrets are compared with ==",
        "keys/secret.py",
        "return hmac.compare_digest(one, other)",
        "return one == other",
        "tests/unit/test_secret.py",
    ),
    Mutant(
        "a wrong secret for a cached id counts as right",
        "keys/verifier.py",
        "if entry is not None and same(entry.tag, tag):",
        "if entry is not None and entry.key:",
        "tests/rpc/test_verify.py",
    ),
    Mutant(
        "a wrong secret counts as proven",
        "keys/verifier.py",
        "            if not right:\n",
        "            if False:\n",
        "tests/rpc/test_verify.py",
    ),
    Mutant(
        "a digest that does not fit goes on to bcrypt",
        "keys/secret.py",
        "return same(_digest(pepper, text), sealed.digest)",
        "return same(_digest(pepper, text), sealed.digest) or None",
        "tests/unit/test_secret.py tests/rpc/test_rehash.py",
    ),
    Mutant(
        "the prefix of a key proven by bcrypt is not looked at",
        "keys/verifier.py",
        "if key.key_prefix != unknown.parsed.key_prefix:",
        "if False:",
        "tests/rpc/test_verify.py tests/rpc/test_rehash.py",
    ),
    Mutant(
        "a batch mixes up its answers",
        "rpc/hotpath.py",
        "zip(asked, answers, strict=True)",
        "zip(asked, answers[::-1], strict=True)",
        "tests/rpc/test_batch_verify.py tests/property/test_batch.py",
    ),
    Mutant(
        "the verdict does not ask for the project",
        "tumbler/decide.py",
        "or (demand.project_ids and key.project_id not in demand.project_ids)",
        "",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "nobody is told that any project's key would do",
        "keys/verifier.py",
        "any_project = not demand.project_ids",
        "any_project = False",
        "tests/rpc/test_any_project.py",
    ),
    Mutant(
        "a verifier takes any project's key without having been told to",
        "tumbler/_desk.py",
        "if response.any_project and self._settings.project_id is None:",
        "if False:",
        "tests/clients/python/test_projects.py",
    ),
    Mutant(
        "a verifier takes the keys of a project that it was not told of",
        "tumbler/_desk.py",
        "not self._settings.accepts(answer.record.project_id)",
        "False",
        "tests/clients/python/test_projects.py",
    ),
    Mutant(
        "what the server said of a key's code hides that it is of another project than a caller accepts",
        "tumbler/_memory.py",
        "if demand.project_ids and self.record.project_id not in demand.project_ids:",
        "if False:",
        "tests/clients/python/test_projects.py",
    ),
    Mutant(
        "an event between the verdict and the stream is missed",
        "tumbler/_sessions.py",
        "            if since != self.words:\n",
        "            if False:\n",
        "tests/clients/python/test_sessions.py",
    ),
    Mutant(
        "a stream outlives the event of its key",
        "tumbler/_memory.py",
        "                self.heard(event.key_id)\n",
        "                pass\n",
        "tests/clients/python/test_sessions.py",
    ),
    Mutant(
        "an answer that is older than an event is the last word on a stream",
        "tumbler/_sessions.py",
        "outcome is None or held.again",
        "outcome is None",
        "tests/clients/python/test_sessions.py",
    ),
    Mutant(
        "a stream whose key cannot be verified goes on for ever",
        "tumbler/_sessions.py",
        "                if now - (held.doubted or now) >= self._patience:\n",
        "                if False:\n",
        "tests/clients/python/test_sessions.py",
    ),
    Mutant(
        "an answer that is broken off looks whole",
        "tumbler/guards/_asgi.py",
        "        elif self._refusal is not None:\n            raise KeyEnded\n",
        "        elif self._refusal is not None:\n            await self._send({'type': 'http.response.body'})\n",
        "tests/clients/python/test_guards_streams.py",
    ),
    Mutant(
        "other projects' keys are found by their id",
        "keys/access.py",
        "return caller.project_id in (OPERATORS, project_id)",
        "return True",
        "tests/rpc/test_callers.py",
    ),
    Mutant(
        "a list has no project filter",
        "keys/finder.py",
        "        project = (wanted.project_id,) if wanted.project_id else ()\n",
        "        project = ()\n",
        "tests/rpc/test_list.py tests/rpc/test_callers.py",
    ),
    Mutant(
        "the grace is not read by Verify",
        "tumbler/decide.py",
        "if now >= key.grace_expire_time:",
        "if False:",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "a key is valid by default",
        "tumbler/decide.py",
        "        return Code.NOT_FOUND\n",
        "        return Code.VALID\n",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "the instant of expiry is still valid",
        "tumbler/decide.py",
        "if now >= key.expire_time:",
        "if now > key.expire_time:",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "one required scope is enough",
        "tumbler/decide.py",
        "        if not all(any_grants(",
        "        if not any(any_grants(",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "a missing client address is let through",
        "tumbler/decide.py",
        "return address is not None and any(",
        "return address is None or any(",
        "tests/unit/test_decide.py",
    ),
    Mutant(
        "the wildcard grants permissions on this service",
        "tumbler/decide.py",
        "return not required.startswith(RESERVED)",
        "return True",
        "tests/unit/test_scopes.py",
    ),
    Mutant(
        "Create hands out what the caller lacks",
        "keys/lifecycle.py",
        '        access.hand_out(caller, values["scopes"])\n',
        "",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "more scopes are not wider",
        "keys/widening.py",
        "not all(any_grants(before.scopes, scope) for scope in after.scopes)",
        "False",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "Rotate hands out what the caller lacks",
        "keys/rotation.py",
        "access.hand_out(caller, before.scopes)",
        "pass",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "rotation loses the scopes",
        "keys/rotation.py",
        "            replaces_key_id=before.id,\n",
        "            replaces_key_id=before.id,\n            scopes=(),\n",
        "tests/rpc/test_rotate.py",
    ),
    Mutant(
        "rotation switches a deactivated key on",
        "keys/rotation.py",
        "            replaces_key_id=before.id,\n",
        "            replaces_key_id=before.id,\n            active=True,\n",
        "tests/rpc/test_rotate.py",
    ),
    Mutant(
        "the grace outlives the old key's expiry",
        "keys/rotation.py",
        "min(now + rotation.grace, before.expire_time)",
        "now + rotation.grace",
        "tests/rpc/test_rotate.py",
    ),
    Mutant(
        "the first use of a key ends nothing",
        "keys/verifier.py",
        "            self._usage.note(key.id, now)\n            if key.awaits_first_use:\n",
        "            self._usage.note(key.id, now)\n            if False:\n",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a caller's first use of its own key ends nothing",
        "keys/verifier.py",
        "            self._usage.note(key.id, self._clock())\n            if key.awaits_first_use:\n",
        "            self._usage.note(key.id, self._clock())\n            if False:\n",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a first use is written by each server that sees it",
        "keys/first_use.py",
        "        if not key.awaits_first_use:  # another server was faster\n",
        "        if False:\n",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a successor that was lost hands nothing on",
        "keys/rotation.py",
        "awaits_first_use=ends_on_first_use or before.awaits_first_use",
        "awaits_first_use=ends_on_first_use",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a first use moves an end that has come",
        "keys/first_use.py",
        " and now < earlier.grace_expire_time:",
        ":",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a first use that cannot be written is forgotten",
        "keys/first_use.py",
        "                self._failed = True\n                return False\n",
        "                self._failed = True\n",
        "tests/rpc/test_first_use.py tests/unit/test_first_use.py",
    ),
    Mutant(
        "one project's first uses take all places",
        "keys/first_use.py",
        "len(noted) >= self._most - self._size:",
        "self._size >= self._most:",
        "tests/unit/test_first_use.py",
    ),
    Mutant(
        "a key that waits for a first use needs no grace",
        "keys/rules.py",
        "elif ends_on_first_use and not grace:",
        "elif False:",
        "tests/rpc/test_first_use.py",
    ),
    Mutant(
        "a second Revoke overwrites the first",
        "keys/lifecycle.py",
        "            if before.revoked:\n"
        "                return Changed(before, before.revision, now)\n"
        "            return self._ledger.revoke(",
        "            return self._ledger.revoke(",
        "tests/rpc/test_revoke.py",
    ),
    Mutant(
        "a request_id's body is not compared",
        "keys/requests.py",
        "if not same(bytes(rows[0].fingerprint), request_id.fingerprint):",
        "if False:",
        "tests/rpc/test_request_id.py",
    ),
    Mutant(
        "a request_id is not looked for inside the transaction",
        "keys/lifecycle.py",
        "            if seen := requests.find(transaction.select, caller, request_id):\n"
        "                return self._ledger.repeated(transaction.select, caller, seen)\n"
        "            now",
        "            now",
        "tests/rpc/test_request_id.py",
    ),
    Mutant(
        "a rotation does not look again inside the transaction",
        "keys/rotation.py",
        "            self._demand_rotatable(before)\n",
        "",
        "tests/e2e/test_races.py",
    ),
    Mutant(
        "a stale etag is overlooked",
        "keys/lifecycle.py",
        "if edit.etag and edit.etag != before.etag:",
        "if False:",
        "tests/rpc/test_update.py",
    ),
    Mutant(
        "a page token fits every filter",
        "keys/tokens.py",
        "        if found != fingerprint:\n",
        "        if False:\n",
        "tests/rpc/test_list_pages.py",
    ),
    Mutant(
        "pages skip ties",
        "keys/finder.py",
        'bounds.append(("<" if descending else ">", (after.value, after.key_id)))',
        'bounds.append(("<" if descending else ">", (after.value,)))',
        "tests/rpc/test_list_pages.py",
    ),
    Mutant(
        "a heartbeat is sent though nothing was confirmed",
        "events/watch.py",
        "if beat and self._uptime() - confirmed <= self._fresh:",
        "if beat:",
        "tests/unit/test_watch.py",
    ),
    Mutant(
        "a stream is told of other projects",
        "events/feed.py",
        "            events = [event for event in events if event.project_id == project_id]\n",
        "            pass\n",
        "tests/unit/test_feed.py",
    ),
    Mutant(
        "a stream outlives its caller's key",
        "events/watch.py",
        "            stream.judge = True\n            self._queue(stream)\n",
        "            self._queue(stream)\n",
        "tests/unit/test_watch.py",
    ),
    Mutant(
        "streams are not told that everything is void",
        "events/watch.py",
        "        if stream.resets != resets:\n",
        "        if False:\n",
        "tests/unit/test_watch.py",
    ),
    Mutant(
        "an event's hash does not cover the one before",
        "events/log.py",
        "hashlib.sha256(before + text.encode())",
        "hashlib.sha256(text.encode())",
        "tests/unit/test_log.py",
    ),
    Mutant(
        "a change leaves no event of its own",
        "events/log.py",
        "    transaction.run_many(_INSERT, rows)\n",
        "",
        "tests/rpc/test_events.py",
    ),
    Mutant(
        "an exception's text is sent to the caller",
        "rpc/status.py",
        'return _status(grpc.StatusCode.INTERNAL, INTERNAL_TEXT, _info("INTERNAL", {}))',
        'return _status(grpc.StatusCode.INTERNAL, str(failure), _info("INTERNAL", {}))',
        "tests/rpc/test_errors.py",
    ),
    Mutant(
        "a server starts with an RPC that no policy covers",
        "rpc/auth.py",
        "    if missing := sorted(methods - policy.keys()):\n",
        "    if missing := []:\n",
        "tests/rpc/test_callers.py",
    ),
    Mutant(
        "the caller's scope is not asked for",
        "rpc/auth.py",
        "    if scope not in key.scopes and not any_grants(key.scopes, scope):\n",
        "    if False:\n",
        "tests/rpc/test_callers.py",
    ),
    Mutant(
        "the network that a caller's key is bound to is not looked at",
        "rpc/auth.py",
        "Demand(client_ip=address())",
        'Demand(client_ip="10.1.2.3")',
        "tests/rpc/test_callers.py",
    ),
    Mutant(
        "a rotation is announced again and again",
        "keys/schedule.py",
        "        after = replace(after, rotation_due_revision=revision)\n",
        "",
        "tests/rpc/test_schedules.py",
    ),
    Mutant(
        "a rotation is due an instant too early",
        "keys/schedule.py",
        "    return now + interval if interval else NEVER",
        "    return now + interval - 1 if interval else NEVER",
        "tests/rpc/test_schedules.py",
    ),
    Mutant(
        "a deactivated key is due",
        "keys/schedule.py",
        "    if not key.active or key.revoked or",
        "    if key.revoked or",
        "tests/rpc/test_schedules.py",
    ),
    Mutant(
        "a process that was replaced goes on writing",
        "events/lease.py",
        "        if not self._term or (row.holder, row.term) != (self._holder, self._term):\n",
        "        if False:\n",
        "tests/unit/test_lease.py",
    ),
    Mutant(
        "a lease is taken from a holder that lives",
        "events/lease.py",
        '        if holder not in ("", self._holder) and began - self._since < self._span:\n',
        "        if False:\n",
        "tests/unit/test_lease.py",
    ),
    Mutant(
        "a scheduler waits for the lease of its own dead predecessor",
        "events/lease.py",
        'if holder not in ("", self._holder) and',
        "if holder and",
        "tests/unit/test_lease.py",
    ),
    Mutant(
        "a thread rests on what another began to read before the commit that it saw",
        "events/tail.py",
        "                        self._confirmed = began\n",
        "                        self._confirmed = self._uptime()\n",
        "tests/unit/test_tail.py",
    ),
    Mutant(
        "a receiver that asks for patience gets none if it took something else",
        "webhooks/deliveries.py",
        "    # Failures last: where an endpoint has answered both ways, it is its patience that counts.\n",
        "    ends = [end for end in ends if not delivered]\n",
        "tests/unit/test_deliveries.py",
    ),
    Mutant(
        "a process that was kept is left behind",
        "processes.py",
        "        self._thread.join(patience)\n",
        "        self._thread.join(patience)\n        return\n",
        "tests/unit/test_processes.py",
    ),
    Mutant(
        "a holder that was silent goes on acting",
        "events/lease.py",
        "        return self._term > 0 and self._uptime() - self._beaten < self._span * 2 // 3",
        "        return self._term > 0",
        "tests/unit/test_lease.py",
    ),
    Mutant(
        "a claim token works for every rotation of its key",
        "keys/rotation.py",
        "        if not key.active or key.rotation_due_revision != due_revision:\n",
        "        if not key.active:\n",
        "tests/rpc/test_claims.py",
    ),
    Mutant(
        "a claim token outlives a deactivation",
        "keys/lifecycle.py",
        "after = replace(before, active=active, rotation_due_revision=0)",
        "after = replace(before, active=active)",
        "tests/rpc/test_claims.py",
    ),
    Mutant(
        "a claim does not look again inside the transaction",
        "keys/rotation.py",
        "            before = self._claimable(transaction.select, key_id, due_revision)\n",
        "            before = old\n",
        "tests/rpc/test_claims.py",
    ),
    Mutant(
        "a successor is as due as the key before",
        "keys/rotation.py",
        "            rotation_due_revision=0,\n",
        "",
        "tests/rpc/test_schedules.py",
    ),
    Mutant(
        "a claim token goes to the URL of before",
        "webhooks/messages.py",
        "        return not (fits and _lives(key, now) and key.webhook_url == delivery.url)",
        "        return not (fits and _lives(key, now))",
        "tests/unit/test_messages.py",
    ),
    Mutant(
        "a claim token that is void is sent",
        "webhooks/dispatch.py",
        "            if key is None or messages.outdated(delivery, key, now):\n",
        "            if key is None:\n",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "who may update may have claim tokens sent",
        "keys/lifecycle.py",
        "            if turned and not any_grants(caller.scopes, _ROTATE):",
        "            if False:",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "a webhook secret is stored as it is",
        "webhooks/vault.py",
        "nonce + self._ciphers[self.newest].encrypt(nonce, secret, context.encode())",
        "nonce + secret + bytes(16)",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "a change by hand is covered up by the next one",
        "keys/ledger.py",
        "        told = change(happened, before, now, actor, {**detail, **evidence.altered(altered)})\n",
        "        told = change(happened, before, now, actor, detail)\n",
        "tests/unit/test_audit.py",
    ),
    Mutant(
        "an event tells of a key as it was before",
        "keys/ledger.py",
        "evidence.digest(row | columns)",
        "evidence.digest(row)",
        "tests/unit/test_audit.py",
    ),
    Mutant(
        "a row may name any of its key's events as the last",
        "keys/evidence.py",
        "e.revision = (SELECT MAX(revision) FROM event WHERE key_id = k.id)",
        "e.revision = k.revision",
        "tests/unit/test_log.py",
    ),
    Mutant(
        "retention removes keys' last events",
        "events/kept.py",
        "gone & EventRow.revision.not_in(kept) if kept else gone",
        "gone",
        "tests/unit/test_audit.py",
    ),
    Mutant(
        "who may verify keys reads values of fields",
        "rpc/wire.py",
        "differences.public(happened.detail) if detail is None else detail",
        "happened.detail",
        "tests/rpc/test_watch.py",
    ),
    Mutant(
        "whoever has update widens any key",
        "keys/widening.py",
        "    access.hand_out(caller, after.scopes)\n",
        "",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "a key widens itself",
        "keys/widening.py",
        "if caller.id == before.id:",
        "if False:",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "a webhook's secret is shown to who has update",
        "keys/deliveries.py",
        "        access.hand_out(caller, tuple(scope for (scope,) in carried))\n",
        "",
        "tests/rpc/test_escalation.py",
    ),
    Mutant(
        "the secret before signs for ever",
        "webhooks/endpoints.py",
        "endpoint.previous_secret is not None and now < endpoint.previous_expire_time",
        "endpoint.previous_secret is not None",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "every status is success",
        "webhooks/dispatch.py",
        "        if 200 <= answer.status < 300:\n",
        "        if True:\n",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "one project takes all the senders",
        "webhooks/shares.py",
        "    return 3 * held < free\n",
        "    return free > 0\n",
        "tests/unit/test_dispatch.py",
    ),
    Mutant(
        "an update looks a name up before it is permitted",
        "keys/lifecycle.py",
        "            before, after = self._edited(self._ledger.select, caller, edit, values, now)\n",
        "            before = self._ledger.load(self._ledger.select, caller, edit.key_id)\n"
        "            after = replace(before, webhook_url=edit.draft.webhook_url)\n",
        "tests/unit/test_webhook_limits.py",
    ),
    Mutant(
        "an operator's key is made with any pepper",
        "founding.py",
        "    if not _signed(store, peppers):\n",
        "    if False:\n",
        "tests/unit/test_founding.py",
    ),
    Mutant(
        "who comes second to found makes a pepper file",
        "founding.py",
        "            _demand_no_keys(transaction, installation)\n            file.make()\n",
        "            file.make()\n            _demand_no_keys(transaction, installation)\n",
        "tests/unit/test_founding.py",
    ),
    Mutant(
        "the pepper file goes though a key was signed with it",
        "founding.py",
        "            if not _signed(transaction, self.peppers):\n",
        "            if True:\n",
        "tests/unit/test_founding.py",
    ),
    Mutant(
        "the doctor counts operators' keys that have expired",
        "keys/operators.py",
        "        (OPERATORS, ALL_SCOPES, now),\n",
        "        (OPERATORS, ALL_SCOPES, 0),\n",
        "tests/unit/test_doctor.py",
    ),
    Mutant(
        "a key that was not made stays in its file",
        "handover.py",
        "                self._file.discard()\n",
        "                pass\n",
        "tests/unit/test_handover.py",
    ),
    Mutant(
        "--output writes over an older file",
        "tumbler/secret_file.py",
        " | os.O_EXCL",
        "",
        "tests/unit/cli/test_output.py",
    ),
    Mutant(
        "the last operator's key is asked about once",
        "tumbler/cli/last_operator.py",
        '    _ask("Nobody can manage',
        '    str("Nobody can manage',
        "tests/unit/cli/test_last_operator.py",
    ),
    Mutant(
        "an endpoint that is gone is asked again",
        "webhooks/deliveries.py",
        "    if outcome.status == 410:\n",
        "    if False:\n",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "Retry-After is overheard",
        "webhooks/deliveries.py",
        "        next_time = max(next_time, now + min(outcome.retry_after, LONGEST_RETRY_AFTER))\n",
        "        pass\n",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "the outbox begins anew at each turn",
        "webhooks/outbox.py",
        "OutboxRow.update(revision=events[-1].revision)",
        "OutboxRow.update(revision=reached)",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "another project's webhooks are shown",
        "keys/deliveries.py",
        "    if not rows or not access.sees(caller, rows[0].project_id):\n",
        "    if not rows:\n",
        "tests/rpc/test_webhooks.py",
    ),
    Mutant(
        "a call is not counted",
        "rpc/exchange.py",
        "plan.present.enter(party, self)",
        "lambda _: None",
        "tests/rpc/test_admission.py::TestOrder",
    ),
    Mutant(
        "a call's place is never given back",
        "rpc/exchange.py",
        "self.task.add_done_callback(leave)",
        "pass",
        "tests/rpc/test_admission.py::TestOrder",
    ),
    Mutant(
        "a project has all calls of a kind",
        "rpc/allotment.py",
        "self._of[party] >= min(self.most_each, self._most - self.taken)",
        "self.taken >= self._most",
        "tests/unit/test_presence.py",
    ),
    Mutant(
        "there may be any number of calls",
        "rpc/allotment.py",
        "min(self.most_each, self._most - self.taken)",
        "self.most_each",
        "tests/unit/test_presence.py",
    ),
    Mutant(
        "other calls keep a key from being revoked",
        "rpc/engine.py",
        '"Revoke": _managed(lambda lanes, _: lanes.stop, shares.STOP_CROWD)',
        '"Revoke": _managed(lambda lanes, _: lanes.stop)',
        "tests/rpc/test_admission.py::TestOrder",
    ),
    Mutant(
        "a project has all places of a lane",
        "rpc/lanes.py",
        "return self._held.get(party, 0) < self._share",
        "return True",
        "tests/unit/test_lanes.py tests/unit/test_hotpath.py",
    ),
    Mutant(
        "parties do not take turns",
        "rpc/lanes.py",
        "self._waiting[party] = items  # behind all others",
        "self._waiting = {party: items, **self._waiting}",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "any amount of work waits",
        "rpc/lanes.py",
        "min(self._most_each, self._most - self._length)",
        "self._most_each",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "a project's work takes the whole queue",
        "rpc/lanes.py",
        "(len(items) if items else 0) >= min(self._most_each, self._most - self._length)",
        "self._length >= self._most",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "a turn is lost with who left in its moment",
        "rpc/lanes.py",
        "if turn.done() and not turn.cancelled():",
        "if False:",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "work whose caller has left holds its place for ever",
        "rpc/lanes.py",
        "    leave(party)\n    if outcome.done():  # the caller has gone\n        return\n",
        "    if outcome.done():  # the caller has gone\n        return\n    leave(party)\n",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "a failure that a future does not take is lost",
        "rpc/lanes.py",
        "if isinstance(failure, Exception) and not isinstance(failure, StopIteration):",
        "if isinstance(failure, Exception):",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "what is asked for is read by any number of threads' worth at a time",
        "rpc/gathering.py",
        "while self._under_way < self._places and len(self._queue):",
        "while len(self._queue):",
        "tests/unit/test_gathering.py",
    ),
    Mutant(
        "a read takes any number of records",
        "rpc/gathering.py",
        "while len(batch) < MOST and",
        "while",
        "tests/unit/test_gathering.py",
    ),
    Mutant(
        "who has left goes on waiting for a read",
        "rpc/gathering.py",
        "            self._queue.drop(party, wanted)\n            raise",
        "            raise",
        "tests/unit/test_gathering.py",
    ),
    Mutant(
        "callers who send nothing are never ended",
        "rpc/engine.py",
        "                crowd.end_waiting(now - to_send, RequestTooSlow(to_send))\n",
        "",
        "tests/rpc/test_admission.py::TestBody",
    ),
    Mutant(
        "callers are ended before their time",
        "rpc/presence.py",
        "(oldest := next(iter(guests))).since <= since",
        "(oldest := next(iter(guests)))",
        "tests/rpc/test_admission.py::TestBody",
    ),
    Mutant(
        "the size of a request is not looked at",
        "rpc/exchange.py",
        "if len(data) > plan.size.most:",
        "if False:",
        "tests/rpc/test_admission.py::TestOrder",
    ),
    Mutant(
        "a server starts with an RPC that has no lane",
        "rpc/engine.py",
        "if missing := sorted(offered - methods.keys()):",
        "if missing := []:",
        "tests/rpc/test_admission.py::TestTables",
    ),
    Mutant(
        "the caller is not judged again once its message has come",
        "keys/verifier.py",
        "return entry is not None and entry.key is key",
        "return True",
        "tests/rpc/test_admission.py::TestJudgedAgain",
    ),
    Mutant(
        "the caller is not judged again in the transaction",
        "store/database.py",
        "if bound.call is not None and bound.call.judge is not None:",
        "if False:",
        "tests/rpc/test_admission.py::TestJudgedAgain",
    ),
    Mutant(
        "a call does not say how to judge its caller again",
        "rpc/exchange.py",
        "            judge=servicer.judge(caller, address, self.plan.method),\n",
        "",
        "tests/rpc/test_admission.py::TestJudgedAgain",
    ),
    Mutant(
        "whom memory refuses is refused for good",
        "rpc/exchange.py",
        "            return  # it may have changed since",
        "            raise  # it may have changed since",
        "tests/rpc/test_admission.py::TestJudgedAgain",
    ),
    Mutant(
        "memory is asked before a view was taken",
        "rpc/exchange.py",
        "            await self.house.hotpath.view()  # what memory",
        "            pass  # what memory",
        "tests/rpc/test_admission.py::TestJudgedAgain",
    ),
    Mutant(
        "work goes on for a caller who has left",
        "rpc/exchange.py",
        "            call.gone = True\n",
        "",
        "tests/rpc/test_admission.py::TestGone",
    ),
    Mutant(
        "the second credential of a call is overlooked",
        "tumbler/credential.py",
        "if len(found) > 1:",
        "if False:",
        "tests/rpc/test_callers.py::test_a_call_has_one_credential tests/clients/python/test_credential.py",
    ),
    Mutant(
        "a look at the log serves for ever",
        "events/glance.py",
        "            asyncio.get_running_loop().call_soon(self._turn_over)\n",
        "",
        "tests/unit/test_glance.py",
    ),
    Mutant(
        "a look that began before a call serves it",
        "events/glance.py",
        "        if self._next is None:\n",
        "        if self._latest is not None and not self._latest.done():\n"
        "            return self._latest\n"
        "        if self._next is None:\n",
        "tests/unit/test_glance.py",
    ),
    Mutant(
        "a look that began before a commit serves who saw it",
        "events/glance.py",
        "look = self._reading.get(version)",
        "look = next(iter(self._reading.values()), None)",
        "tests/unit/test_glance.py",
    ),
    Mutant(
        "a commit during a look counts as seen",
        "events/glance.py",
        "        self._seen = version\n",
        "        self._seen = self._tail.version()\n",
        "tests/unit/test_glance.py",
    ),
    Mutant(
        "any number of secrets of a key are proven at a time",
        "rpc/hotpath.py",
        "if self._of_a_key[asked.id] >= PROOFS_OF_A_KEY.most:",
        "if False:",
        "tests/unit/test_hotpath.py",
    ),
    Mutant(
        "a run of bcrypt that nobody waits for does not count",
        "rpc/hotpath.py",
        "if not flight.waiting and not flight.begun:",
        "if not flight.waiting:",
        "tests/unit/test_hotpath.py",
    ),
    Mutant(
        "who shares a run of bcrypt shares the record too",
        "rpc/hotpath.py",
        "return doubtful.key if proven else None",
        'return vars(self).setdefault("first", doubtful.key) if proven else None',
        "tests/unit/test_hotpath.py",
    ),
    Mutant(
        "--stale-if-error is not asked for",
        "rpc/hotpath.py",
        "view = self._verifier.last_resort(at_least, exactly)",
        "view = None",
        "tests/unit/test_hotpath.py",
    ),
    Mutant(
        "streams of health.Watch are not counted",
        "rpc/receiving.py",
        "        at_end(self.present.enter(visitor.peer, visitor))\n",
        "",
        "tests/unit/test_health.py",
    ),
    Mutant(
        "who needs no key keeps all places for ever",
        "rpc/presence.py",
        "self._gives_way and places",
        "False and places",
        "tests/unit/test_presence.py",
    ),
    Mutant(
        "strangers take the places of those who were let in",
        "rpc/presence.py",
        "if not self._known(oldest.peer):",
        "if True:",
        "tests/unit/test_presence.py",
    ),
    Mutant(
        "who reads nothing keeps all places of those who need no key",
        "rpc/presence.py",
        "            reads.cut()\n",
        "            pass\n",
        "tests/unit/test_presence.py",
    ),
    Mutant(
        "a claim token that is none waits for a thread",
        "rpc/exchange.py",
        "        self.house.servicer.read_claim(request.claim_token)\n",
        "",
        "tests/rpc/test_admission.py::TestOrder",
    ),
    Mutant(
        "an answer may be left unread for ever",
        "rpc/engine.py",
        "                crowd.cut_unread(now - to_read)\n",
        "",
        "tests/rpc/test_admission.py::TestUnread",
    ),
    Mutant(
        "any number of bytes may be left unread",
        "rpc/exchange.py",
        "                self.house.unsent.hold(self.caller.project_id, answer)\n",
        "                pass\n",
        "tests/rpc/test_admission.py::TestUnread",
    ),
    Mutant(
        "what was read is counted as unread for ever",
        "rpc/unsent.py",
        "        self._bytes.give_back(project_id, size)\n",
        "        pass\n",
        "tests/unit/test_unsent.py",
    ),
    Mutant(
        "a project that reads nothing keeps others from their lists",
        "rpc/unsent.py",
        "self._bytes.is_full(project_id)",
        "self._bytes.taken >= shares.UNREAD_OF_A_PROJECT.most",
        "tests/unit/test_unsent.py",
    ),
    Mutant(
        "Verifies have no turns",
        "rpc/spreading.py",
        "if self._given >= AT_ONCE or self._giving:",
        "if False:",
        "tests/unit/test_spreading.py",
    ),
    Mutant(
        "a batch keeps the loop until it is done",
        "rpc/spreading.py",
        "            await asyncio.sleep(0)\n",
        "",
        "tests/unit/test_spreading.py",
    ),
    Mutant(
        "a turn of the loop brings one event",
        "rpc/loop.py",
        "            if not last or len(ready) >= full or headers.size > shares.ABSURD:\n",
        "            if True:\n",
        "tests/unit/test_loop.py",
    ),
    Mutant(
        "a call that waits is not told that its caller has gone",
        "rpc/serving.py",
        "            context.watch()\n        self._older",
        "            pass\n        self._older",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "a status that is not taken is waited for",
        "rpc/serving.py",
        "(status.PATIENCE, self.cut)\n        try:\n            await self.finish",
        "(1_000, self.cut)\n        try:\n            await self.finish",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "there may be any number of statuses that are not taken",
        "rpc/serving.py",
        "        if len(ending) >= shares.LAST_WORDS.most:\n",
        "        if False:\n",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "who does not take a status makes no room",
        "rpc/receiving.py",
        "        if visitor is not None:\n            visitor.answered()\n        told",
        "        told",
        "tests/unit/test_health.py",
    ),
    Mutant(
        "what fails in a handler is told as it is",
        "rpc/serving.py",
        "status.told(failed, details.method)",
        "status.Told(grpc.StatusCode.UNKNOWN, str(failed), b'')",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "a bell that rings is not rung again, and never heard",
        "rpc/loop.py",
        "        self._rings = False\n\n\nclass LoopThread",
        "        self._rings = True\n\n\nclass LoopThread",
        "tests/unit/test_loop.py",
    ),
    Mutant(
        "each address of IPv6 is somebody else",
        "rpc/shedding.py",
        '    if ":" not in address:\n',
        "    if True:\n",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "who sends without end goes on being heard",
        "rpc/policing.py",
        "                sockets.silence(file)\n",
        "                pass\n",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a proxy is silenced for what one of its callers sends",
        "rpc/policing.py",
        "set(self._shedding.strangers(talking)) if talking else set()",
        "talking",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "who is silenced stays for ever",
        "rpc/policing.py",
        "if since < over])",
        "if False])",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "who made room and reads nothing is kept in a cycle",
        "rpc/receiving.py",
        "            status.forget(failure)\n",
        "",
        "tests/e2e/test_calls.py",
    ),
    Mutant(
        "honest batches are taken for a flood",
        "rpc/policing.py",
        "{end: rate + heard.get(end, 0) for end in known - strangers}",
        "dict.fromkeys(known - strangers, rate)",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a large message that is still coming is taken for a flood",
        "rpc/policing.py",
        "if size > _GREETING + awaited[end]}",
        "if size > _GREETING}",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a tenant's flood is no flood",
        "rpc/policing.py",
        "self._shedding.doom_overdrawn(",
        "set(",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a namesake of who was silenced is cut",
        "rpc/policing.py",
        " and sockets.hear(file):",
        ":",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a newcomer's burst is taken for a flood",
        "rpc/policing.py",
        "if debt > _GREETING]:",
        "]:",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "nobody looks whether gRPC still reads everybody",
        "server.py",
        "shedding.watch(), Policing(shedding, self._core.engine.awaited).watch()",
        "shedding.watch()",
        "tests/e2e/test_wire.py",
    ),
    Mutant(
        "all who hang up at once are seen to in one turn",
        "rpc/serving.py",
        "for _ in range(min(PARTINGS, len(self._parting))):",
        "for _ in range(len(self._parting)):",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "who hangs up takes the turn of who calls",
        "rpc/serving.py",
        "if event.success and (receiving is None or receiving.message() is not None):",
        "if True:",
        "tests/unit/test_serving.py",
    ),
    Mutant(
        "refusals always come at once",
        "rpc/shedding.py",
        "            await self._wait()\n",
        "            pass\n",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "a hundred strangers send a hundred times as much",
        "rpc/policing.py",
        "rate / max(1, len(strangers))",
        "rate",
        "tests/unit/test_policing.py",
    ),
    Mutant(
        "a call's headers explain nothing",
        "rpc/exchange.py",
        "        self._heard(self.headed + _AROUND)\n",
        "",
        "tests/rpc/test_admission.py",
    ),
    Mutant(
        "a byte may stand for any header",
        "rpc/headers.py",
        "if before <= _MOST else _LEFT_OUT",
        "",
        "tests/unit/test_accepting.py",
    ),
    Mutant(
        "calls of a connection that was cut are served",
        "rpc/accepting.py",
        "                if has_gone(event.call):\n",
        "                if False:\n",
        "tests/unit/test_accepting.py",
    ),
    Mutant(
        "what a peer sent before it was cut is read",
        "rpc/sockets.py",
        "    _c.shutdown(file, socket.SHUT_RDWR)\n    _discard(file)\n",
        "    _c.shutdown(file, socket.SHUT_RDWR)\n",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "nobody is told that lines were left out of the log",
        "logs.py",
        "            if self._lost:\n",
        "            if False:\n",
        "tests/unit/test_logs.py",
    ),
    Mutant(
        "strangers take all connections",
        "rpc/shedding.py",
        "if number >= most})",
        "if False})",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "a stream that says nothing is cut",
        "rpc/shedding.py",
        "self._let_in[0] | self._let_in[1] | streams",
        "self._let_in[0] | self._let_in[1]",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "who asks while the database is away is held back",
        "rpc/exchange.py",
        "self.caller is auth.NOBODY and isinstance(failure, Unauthenticated | ClaimTokenInvalid)",
        "self.caller is auth.NOBODY",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "any number of refusals wait",
        "rpc/shedding.py",
        "if len(self._late) < shares.LATE_REFUSALS.most:",
        "if True:",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "a proxy's connection is cut for what one of its callers sent",
        "rpc/shedding.py",
        "elif not self.has_been_let_in(peer) and len(self._doomed) < MOST:",
        "elif len(self._doomed) < MOST:",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "another port's connection is shut down",
        "rpc/sockets.py",
        "if ours[2:4] != self._port:",
        "if not ours:",
        "tests/unit/test_shedding.py",
    ),
    Mutant(
        "who is let in is not exempt",
        "rpc/exchange.py",
        "            self.house.shedding.let_in(peer)\n",
        "",
        "tests/e2e/test_wire.py",
    ),
    Mutant(
        "headers may go on in any number of frames",
        "rpc/engine.py",
        "        if details.size > shares.HEADER_BYTES.most:\n",
        "        if False:\n",
        "tests/e2e/test_wire.py",
    ),
    Mutant(
        "a server that stops can be called healthy",
        "rpc/health.py",
        "_SERVING if serving and not self._over else",
        "_SERVING if serving else",
        "tests/unit/test_health.py",
    ),
)


def _run(command: list[str], folder: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT
    )


def place(mutant: Mutant) -> tuple[Path, str]:
    """Return the package that a mutant is made of, and its file's place in it."""
    if mutant.file.startswith("tumbler/"):
        return PACKAGES[1], mutant.file.removeprefix("tumbler/")
    return PACKAGES[0], mutant.file


def survives(mutant: Mutant) -> str | None:
    """Return why the mutant was not noticed, or None where it was."""
    package, file = place(mutant)
    source = (package / file).read_text()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for each in PACKAGES:
            shutil.copytree(each, Path(folder, each.name), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, package.name, file).write_text(source.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", *_OPTIONS, *mutant.tests.split()]
        try:
            run = _run(command, folder)
        except subprocess.TimeoutExpired:
            return "its tests hung, which says nothing"
    if run.returncode == 1:
        return None
    return "no test failed" if run.returncode == 0 else f"pytest itself failed:\n{run.stdout[-2000:]}"


def main() -> int:
    """Try all mutants, or those whose names are given."""
    chosen = [mutant for mutant in MUTANTS if mutant.name in sys.argv[1:]] if sys.argv[1:] else list(MUTANTS)
    survivors = 0
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (mutant, reason) in enumerate(zip(chosen, pool.map(survives, chosen), strict=True), start=1):
            print(f"[{number}/{len(chosen)}] {'noticed' if reason is None else 'SURVIVED'}: {mutant.name}", flush=True)
            if reason is not None:
                survivors += 1
                print(f"    {reason}")
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were noticed, in {time.monotonic() - began:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
