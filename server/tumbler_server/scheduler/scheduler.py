"""The process that does timed work. Each server runs one, and one of all of them acts.

It is a process of its own so that it shares no interpreter with those that verify. It has a lower priority (``nice``),
so that they get the processors first, too. It does not use gRPC.
"""

import os
import sys
from dataclasses import dataclass

from tumbler_server import logs
from tumbler_server.clock import Clock, monotonic, system_clock
from tumbler_server.config import Config
from tumbler_server.errors import SetupError, StoreUnavailable, explain
from tumbler_server.processes import READY, take_up, wait_for_parent
from tumbler_server.scheduler import timekeeping
from tumbler_server.scheduler.acting import Acting
from tumbler_server.scheduler.alarms import Alarms
from tumbler_server.scheduler.timekeeping import Timekeeper, Timekeeping
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.pepper import vault
from tumbler_server.store import migrations
from tumbler_server.store.database import POSTGRESQL, Store, open_store
from tumbler_server.store.lease import Lease
from tumbler_server.webhooks.dispatch import Dispatch
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.outbox import Outbox
from tumbler_server.webhooks.post import Poster
from tumbler_server.webhooks.targets import Judge, LookUp, Resolver
from tumbler_server.webhooks.upkeep import Upkeep

NICENESS = 10
"""Niceness of the process: if all processors are busy, it gets a tenth of what a serving process gets."""


@dataclass(frozen=True)
class Scheduler:
    """The duties, wired to a database."""

    store: Store
    acting: Acting
    dispatch: Dispatch
    post: Poster
    resolver: Resolver

    def start(self) -> None:
        """Start to act, whenever this process has the lease."""
        self.acting.start()

    def close(self) -> None:
        """Finish the work in progress, give up the lease, and close the database."""
        self.acting.close()
        self.dispatch.close()
        self.post.close()
        self.resolver.close()
        self.store.close()


def build_scheduler(
    config: Config,
    holder: str,
    clock: Clock = system_clock,
    monotonic: Clock = monotonic,
    look_up: LookUp | None = None,
) -> Scheduler:
    """Wire the duties. ``holder`` is the name in the lease. ``look_up`` resolves host names, if given.

    Raises ``SetupError`` if the installation is not ready.
    """
    store = open_store(config.installation.database_url, timeout=config.database_timeout)
    migrations.check(store)
    store.notifies = config.database_notify and store.dialect == POSTGRESQL
    peppers = config.installation.peppers()
    resolver = Resolver(look_up)
    endpoints = Endpoints(vault(peppers), Judge(config.webhook_rules, resolver))
    poster = Poster(config.webhook_rules, resolver, config.webhook_proxy, config.webhook_ca_file)
    timekeeping.begin(store, clock())
    timekeeper = Timekeeper(store, clock, monotonic, tells=False)
    believed = timekeeper.now
    dispatch = Dispatch(store, endpoints, poster.post, ClaimTokens(peppers).token, believed, clock)
    duties = (
        Timekeeping(store, clock, monotonic),
        Alarms(store, believed),
        Outbox(store, believed),
        dispatch,
        Upkeep(store, endpoints, timekeeper.earliest, config.event_retention, monotonic),
    )
    lease = Lease(store, holder, config.scheduler_lease, monotonic)
    acting = Acting(lease, duties, config.scheduler_lease, monotonic)
    dispatch.finished = acting.wake
    return Scheduler(store, acting, dispatch, poster, resolver)


def main() -> None:
    """Run a scheduler until its server ends."""
    (config, holder), tell = take_up()
    os.nice(NICENESS)
    logs.configure(config.log_level, config.log_format)
    try:
        scheduler = build_scheduler(config, holder)
    except (SetupError, StoreUnavailable) as failure:
        tell(explain(failure).encode())
        sys.exit(1)
    tell(READY)
    scheduler.start()
    wait_for_parent()
    scheduler.close()
