"""The ``tumbler-server`` command."""

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from tumbler_server.config import Config, Installation, Json, parse_span, takes_settings
from tumbler_server.errors import InvalidFields, SetupError, StoreUnavailable, explain

# Each command imports what only its work needs, so that --help does not wait for that.

app = typer.Typer(
    name="tumbler-server",
    help="Tumbler issues and verifies API keys. Run `tumbler-server init` first, then `tumbler-server serve`.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
pepper_app = typer.Typer(help="Manage the pepper file.", no_args_is_help=True)
audit_app = typer.Typer(help="Check the audit trail.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(pepper_app, name="pepper")

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        show_default="stdout",
        help="Write the key to this new file of mode 0600. The file is created before anything is changed.",
    ),
]


@app.command()
@takes_settings
def init(
    installation: Installation,
    bcrypt_cost: int,
    default_prefix: str,
    output: Output = None,
) -> None:
    """Create the database, the pepper file and the first key, which is shown once.

    The key belongs to the reserved project `tumbler` and may do everything. With
    --output the command writes it to a new file that only its owner may read.
    Otherwise stdout contains the key and nothing else. The command fails if an
    installation exists.

        tumbler-server init --output first-key

    If you lose the first key, `tumbler-server operator-key` makes another.
    """
    from tumbler_server import founding
    from tumbler_server.handover import Handover

    _clean_up_at_the_end()
    with Handover(output) as handover:
        _heed_signals()
        text = founding.found(installation, bcrypt_cost, default_prefix, handover.keep)
        where = f"the first key, in {output}." if output else "this first key:"
        _say(f"Created the database, the pepper file {installation.pepper_file}, and {where}")
        handover.show(text, "the installation was made")
    _say("The key is not shown again. Keep it safe; keep the pepper file apart from backups of the database.")


@app.command("operator-key")
@takes_settings
def operator_key(
    installation: Installation,
    bcrypt_cost: int,
    default_prefix: str,
    name: Annotated[str, typer.Option("--name", help="Name of the key, 3-255 characters.")] = "operator",
    revoke_others: Annotated[
        bool,
        typer.Option(
            "--revoke-others", help="Revoke all other keys of the project tumbler that have the scope tumbler:*."
        ),
    ] = False,
    output: Output = None,
) -> None:
    """Make another operator's key, if the one you have is lost, revoked, expired or leaked.

    The command needs the database and the pepper file, but no key and no running
    server. Servers may be running; they learn of the new key at once. It is like
    the first key: it belongs to the reserved project `tumbler`, has the scope
    `tumbler:*`, and is shown once. The audit trail names this command.

    If the key is lost, and there is no copy:

        tumbler-server operator-key --output operator.key

    If the key leaked, also revoke all other operator's keys, in the same transaction:

        tumbler-server operator-key --revoke-others --output operator.key

    This does not change keys of the project `tumbler` with fewer scopes. List them:

        tumbler keys list --project tumbler
    """
    from tumbler_server import founding
    from tumbler_server.handover import Handover

    _clean_up_at_the_end()
    with Handover(output) as handover:
        _heed_signals()
        try:
            made = founding.make_operator_key(
                installation, bcrypt_cost, default_prefix, name, revoke_others, handover.keep
            )
        except InvalidFields as failure:
            raise typer.BadParameter(failure.violations[0].rule, param_hint="'--name'") from None
        _say(f"Made the operator's key {made.key.id}, which may do everything{f', in {output}' if output else ''}.")
        if made.revoked:
            _say(f"Revoked {len(made.revoked)} other operator's key(s): {', '.join(made.revoked)}.")
        elif revoke_others:
            _say("There was no other operator's key to revoke.")
        handover.show(made.text, f"the key {made.key.id} was made")
    _say("The key is not shown again. Keep it safe. Give your services keys with fewer scopes: `tumbler keys create`.")
    if not revoke_others:
        _say("If the earlier key may have leaked, revoke it: `tumbler keys list --project tumbler` shows its id.")


@app.command()
@takes_settings
def serve(config: Config) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the calls in flight. Prints one line when it is ready.

    tumbler-server serve --listen 127.0.0.1:50051
    """
    from tumbler_server import processes, supervisor, worker
    from tumbler_server.freshness.board import Board

    _configure_logs(config.log_level, config.log_format)

    def ready(port: int) -> None:
        host = config.listen.rpartition(":")[0]
        try:
            print(f"tumbler-server is ready on {host}:{port}", flush=True)
        except OSError as failure:
            raise SetupError(
                f"stdout cannot be written: {failure.strerror}. Send it to a file that has room, or to /dev/null"
            ) from None

    for number in processes.IGNORED:  # and the processes that are started inherit it
        signal.signal(number, signal.SIG_IGN)
    if config.workers > 1:
        supervisor.supervise(config, ready, _stopping)
    else:
        worker.serve(config, Board(), ready, _stopping_alone)


@app.command()
@takes_settings
def migrate(data_dir: Path, database: str) -> None:
    """Upgrade the database's schema to the version of this program. Back up, and stop all servers first.

    You can run it more than once: it records in the log the keys that a server of an older version changed meanwhile.
    """
    from tumbler_server.audit import recording
    from tumbler_server.clock import system_clock
    from tumbler_server.scheduler import timekeeping
    from tumbler_server.store import migrations
    from tumbler_server.store.database import open_store

    store = open_store(Installation(data_dir, database).database_url)
    if migrations.current(store) == 0:
        raise SetupError("the database is empty: run `tumbler-server init` first")
    applied = migrations.migrate(store)
    timekeeping.begin(store, system_clock())
    if recorded := recording.record(store, system_clock):
        _say(f"Recorded {recorded:,} keys that an older server had changed: is one still running?")
    _say(
        f"Applied {', '.join(map(str, applied))}." if applied else f"Nothing to do: the schema is {migrations.NEWEST}."
    )
    store.close()


@app.command()
@takes_settings
def trust_clock(data_dir: Path, database: str) -> None:
    """Confirm that this machine's clock is right, if it differs by more than a day from the installation's time.

    Servers do not trust such a clock, and remove and announce nothing by it, until you run this command or a server
    has run with the clock for a day. Running servers act on the command within a minute.
    """
    from tumbler_server.clock import rfc3339, system_clock
    from tumbler_server.scheduler import timekeeping
    from tumbler_server.store import migrations
    from tumbler_server.store.database import open_store

    store = open_store(Installation(data_dir, database).database_url)
    migrations.check(store)
    now = system_clock()
    timekeeping.trust(store, now)
    store.close()
    _say(f"The installation now trusts this machine's clock: {rfc3339(now)}.")


@app.command()
@takes_settings
def doctor(installation: Installation, as_json: Json = False) -> None:
    """Show what is wrong with this installation, and how to fix it. Exits with 1 if anything is wrong."""
    import rich.console
    import rich.table

    from tumbler_server import doctor as diagnosis

    findings = diagnosis.examine(installation)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        table = rich.table.Table("", "checked", "found", "mend")
        marks = {"ok": "[green]ok", "warning": "[yellow]warning", "wrong": "[red]wrong"}
        for finding in findings:
            table.add_row(marks[finding.severity], finding.subject, finding.found, finding.mend)
        rich.console.Console().print(table)
    if any(finding.severity == "wrong" for finding in findings):
        raise typer.Exit(1)


@audit_app.command("verify")
@takes_settings
def audit_verify(
    data_dir: Path,
    database: str,
    copy: Annotated[
        Path | None,
        typer.Option("--against", help="Also compare with this copy: the output of `audit export` or `audit head`."),
    ] = None,
    retention: Annotated[
        int | None,
        typer.Option(
            "--event-retention",
            envvar="TUMBLER_EVENT_RETENTION",
            parser=parse_span,
            metavar="DURATION",
            help="What the servers run with: also report events that were removed although they are younger.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute the hash chain of all events, and compare every key with its events. Exits with 1 if anything is wrong.

    Events that servers removed because of their age (`serve --event-retention`) are not reported as missing.
    The database does not know the retention: give it here to have events reported that were removed too early.
    The server may keep running.
    """
    from tumbler_server import auditing

    if not auditing.verify(Installation(data_dir, database), copy, retention, as_json):
        raise typer.Exit(1)


@audit_app.command("export")
@takes_settings
def audit_export(
    data_dir: Path,
    database: str,
    after: Annotated[int, typer.Option(min=0, help="Begin after this revision, to continue an earlier copy.")] = 0,
) -> None:
    """Write all events with their hashes to stdout, one JSON object per line. They contain no secrets.

    Keep the copy where those who can write to the database cannot change it. `audit verify --against` compares with it.
    """
    from tumbler_server import auditing

    _demand_stdout()
    auditing.export(Installation(data_dir, database), after)


@audit_app.command("head")
@takes_settings
def audit_head(data_dir: Path, database: str) -> None:
    """Print one line to note down: the newest event, its hash, which covers all events before it, and its time.

    Later, `audit verify --against FILE` says whether the log still has them.
    """
    from tumbler_server import auditing

    _demand_stdout()
    auditing.head(Installation(data_dir, database))


@pepper_app.command("rotate")
@takes_settings
def pepper_rotate(
    data_dir: Path,
    pepper: Path | None,
    create: Annotated[
        bool, typer.Option("--create", help="The file is lost: make a new one. Fails if there is one.")
    ] = False,
) -> None:
    """Put a new pepper first in the file; then restart the servers. They re-sign keys on use; all keys keep working."""
    from tumbler_server.secrets import pepper as pepper_file

    path = Installation(data_dir, pepper=pepper).pepper_file
    if create:
        pepper_file.create(path)
        _say(f"{path} is new and has one pepper. Copy it to every server, and restart them all.")
        return
    newest = pepper_file.rotate(path)
    _say(f"{path} now begins with the new pepper {newest.id}. Restart every server that uses it.")


def main() -> None:
    """Run the command. A problem with the installation is one line on stderr, and exit code 1."""
    atexit.register(gc.freeze)  # the last collection, of memory that goes anyway, takes a fifth of a second
    _open_standard_files()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed; what is printed to None goes to the other one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process
    from tumbler_server import logs

    logs.configure()
    os.umask(0o077)  # files that we create are private
    try:
        app()
    except (SetupError, StoreUnavailable) as failure:
        _say(f"tumbler-server: {explain(failure)}")
        sys.exit(1)
    except OSError as failure:
        where = f"{failure.filename}: " if failure.filename else ""
        _say(f"tumbler-server: {where}{failure.strerror or type(failure).__name__}")
        sys.exit(1)
    except (RuntimeError, MemoryError) as failure:
        if not isinstance(failure, MemoryError) and "start new thread" not in str(failure):
            raise
        _say("tumbler-server: the system has no more memory or threads for this process: raise `ulimit -v` or `-u`")
        os._exit(1)  # threads that have begun may wait for those that have not
    except Exception as failure:
        from tumbler_server.store.failures import describe

        said = describe(failure)
        if said is None:
            raise
        _say(f"tumbler-server: the database has unexpected content: {said}. Run `tumbler-server doctor`")
        sys.exit(1)


_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def _clean_up_at_the_end() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does: a file that was begun and has no key in it is removed.

    All wait for ``_heed_signals``, inside the ``with`` that removes the file.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    signal.pthread_sigmask(signal.SIG_BLOCK, _TO_END)


def _heed_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_END)


def _open_standard_files() -> None:
    """Open those of stdin, stdout and stderr that are closed: else the next file or socket would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _demand_stdout() -> None:
    if sys.__stdout__ is None:  # sys.stdout has been replaced by now
        raise SetupError("stdout is closed, so nothing would be written")


def _configure_logs(level: str, form: str) -> None:
    from tumbler_server import logs

    if level not in logs.LEVELS:
        raise typer.BadParameter(f"--log-level must be one of {', '.join(logs.LEVELS)}")
    if form and form not in logs.FORMATS:
        raise typer.BadParameter(f"--log-format must be one of {', '.join(logs.FORMATS)}")
    logs.configure(level, form)


def _stopping() -> None:
    _say("Stopping: finishing the calls in flight.")


def _stopping_alone() -> None:
    from tumbler_server.processes import ENDING, Ending

    _stopping()
    told = Ending()

    def give_up(number: int, _: FrameType | None) -> None:
        if not told.again():
            return
        if number != signal.SIGTERM:
            os._exit(128 + number)  # sys.exit would wait for the threads, and so for the calls
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, give_up)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have gone
        print(text, file=sys.stderr, flush=True)
