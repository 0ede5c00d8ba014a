"""The operator's settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from tests.domain import answers
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.config import (
    Config,
    Installation,
    Tls,
    format_size,
    format_span,
    parse_address,
    parse_address_or_none,
    parse_size,
    parse_span,
    takes_settings,
)
from tumbler_server.errors import SetupError
from tumbler_server.secrets import pepper
from tumbler_server.store.database import open_store


class TestTakesSettings:
    """How a command gets its settings."""

    def run(self, command: Callable[..., None], *arguments: str, **environment: str) -> Result:
        """Run a command of one program."""
        app = typer.Typer()
        app.command()(takes_settings(command))
        return CliRunner().invoke(app, arguments, env=environment)

    def test_all_of_a_class(self) -> None:
        """A parameter of a class of settings gets all of them: flags before variables before defaults."""
        taken: list[Config] = []

        def command(config: Config) -> None:
            taken.append(config)

        assert self.run(command).exit_code == 0
        assert taken == [Config(Installation())]
        environment = {"TUMBLER_CACHE_TTL": "5s", "TUMBLER_THREADS": "3", "TUMBLER_TLS_CERT": "c"}
        flags = ("--threads", "4", "--tls-key", "k", "--no-database-notify", "--pepper-file", "p", "--insecure")
        assert self.run(command, *flags, **environment).exit_code == 0
        assert taken[1] == Config(
            Installation(pepper=Path("p")),
            cache_ttl=5 * SECOND,
            threads=4,
            tls=Tls(Path("c"), Path("k")),
            database_notify=False,
            insecure=True,
        )

    def test_single_settings(self) -> None:
        """A parameter that is named like a setting gets that one; one with a default is the command's own."""
        taken: list[tuple[Path, int, bool]] = []

        def command(data_dir: Path, bcrypt_cost: int, quick: bool = False) -> None:
            taken.append((data_dir, bcrypt_cost, quick))

        assert self.run(command, "--quick", "--data-dir", "d", TUMBLER_BCRYPT_COST="5").exit_code == 0
        assert taken == [(Path("d"), 5, True)]
        assert self.run(command, "--database", "x").exit_code == 2

    def test_no_setting_of_that_name(self) -> None:
        """A parameter without a default that no setting is named like is a mistake in the program."""

        def command(nothing: str) -> None: ...

        with pytest.raises(KeyError, match="nothing"):
            takes_settings(command)


class TestSpans:
    """The format of durations."""

    @pytest.mark.parametrize(
        ("text", "microseconds"),
        [
            ("500ms", SECOND // 2),
            ("1ms", 1_000),
            ("90s", 90 * SECOND),
            ("15m", 15 * MINUTE),
            ("1h", HOUR),
            ("7d", 7 * DAY),
            ("0s", 0),
            ("007s", 7 * SECOND),
            ("999999999d", 999_999_999 * DAY),
        ],
    )
    def test_accepted(self, text: str, microseconds: int) -> None:
        """A duration is a whole number and one of ms, s, m, h and d."""
        assert parse_span(text) == microseconds

    @pytest.mark.parametrize(
        "text",
        ["", "5", "s", "1.5h", "-1s", "+1s", "1 s", " 1s", "1s\n", "1S", "1w", "1us", "1h30m", "1e3s", "9" * 10 + "s"],
    )
    def test_refused(self, text: str) -> None:
        """Any other text is refused with examples."""
        with pytest.raises(typer.BadParameter, match="500ms, 90s, 15m, 1h or 7d"):
            parse_span(text)

    @pytest.mark.parametrize("text", ["0s", "1ms", "500ms", "1500ms", "90s", "2m", "1h", "25h", "7d"])
    def test_shown(self, text: str) -> None:
        """A default is shown in the largest unit that fits, as it is written."""
        assert format_span(parse_span(text)) == text
        assert format_span(parse_span("60s")) == "1m"


class TestSizes:
    """The format of sizes."""

    @pytest.mark.parametrize(
        ("text", "size"), [("1KiB", 1_024), ("512KiB", 2**19), ("128MiB", 2**27), ("2GiB", 2**31), ("0MiB", 0)]
    )
    def test_accepted(self, text: str, size: int) -> None:
        """A size is a whole number and one of KiB, MiB and GiB."""
        assert parse_size(text) == size

    @pytest.mark.parametrize(
        "text", ["", "5", "MiB", "1.5MiB", "-1MiB", "1 MiB", "1MB", "1mib", "1MiB\n", "1234567KiB"]
    )
    def test_refused(self, text: str) -> None:
        """Any other text is refused with examples."""
        with pytest.raises(typer.BadParameter, match="512KiB, 128MiB or 2GiB"):
            parse_size(text)

    @pytest.mark.parametrize("text", ["1KiB", "1536KiB", "128MiB", "2GiB"])
    def test_shown(self, text: str) -> None:
        """A default is shown in the largest unit that fits, as it is written."""
        assert format_size(parse_size(text)) == text

    def test_the_least(self) -> None:
        """A cache has at least 1 MiB, which is room for some records."""
        assert Config(Installation(), cache_bytes=2**20)
        with pytest.raises(SetupError, match="--cache-bytes must be at least 1MiB"):
            Config(Installation(), cache_bytes=2**20 - 1)


LOOPBACK = ["127.0.0.1:50051", "127.0.0.2:1", "127.255.255.254:0", "[::1]:50051", "localhost:50051"]
BEYOND = [
    "0.0.0.0:50051",
    "[::]:50051",
    "192.0.2.7:50051",
    "[2001:db8::1]:50051",
    "10.0.0.1:50051",
    "example.com:50051",
    "localhost.example.com:50051",
    "127.0.0.1.example.com:50051",
    "unix:/run/tumbler.sock",
    "*:50051",
]


class TestLoopback:
    """Whether only this machine can reach the server."""

    @pytest.mark.parametrize("listen", LOOPBACK)
    def test_loopback(self, listen: str) -> None:
        """On a loopback address a server may use plaintext, and reflection is on by default."""
        config = Config(Installation(), listen=listen)
        assert config.loopback
        assert config.reflects

    @pytest.mark.parametrize("listen", BEYOND)
    def test_beyond(self, listen: str) -> None:
        """On any other address a server without TLS does not start, and the message names the options."""
        with pytest.raises(SetupError, match=r"is not a loopback address.*--tls-cert and --tls-key, or --insecure"):
            Config(Installation(), listen=listen)

    @pytest.mark.parametrize("listen", BEYOND)
    def test_encrypted(self, listen: str) -> None:
        """With TLS, or with --insecure, a server starts on any address, and reflection is off by default."""
        for config in (
            Config(Installation(), listen=listen, tls=Tls(Path("cert"), Path("key"))),
            Config(Installation(), listen=listen, insecure=True),
        ):
            assert not config.loopback
            assert not config.reflects

    @pytest.mark.parametrize("reflection", [True, False])
    @pytest.mark.parametrize("listen", ["127.0.0.1:1", "0.0.0.0:1"])
    def test_reflection(self, listen: str, reflection: bool) -> None:
        """An explicit reflection setting counts, wherever the server listens."""
        assert Config(Installation(), listen=listen, insecure=True, reflection=reflection).reflects is reflection


class TestAddresses:
    """The format of the command's addresses."""

    @pytest.mark.parametrize("text", ["127.0.0.1:50051", "[::1]:0", "localhost:65535", "0.0.0.0:9464"])
    def test_accepted(self, text: str) -> None:
        """An address is a host and a port."""
        assert parse_address(text) == parse_address_or_none(text) == text

    @pytest.mark.parametrize(
        "text", ["127.0.0.1", ":50051", "50051", "localhost:", "localhost:http", "localhost:65536"]
    )
    def test_refused(self, text: str) -> None:
        """Half an address, or an invalid port, is refused with examples."""
        for parse in (parse_address, parse_address_or_none):
            with pytest.raises(typer.BadParameter, match=r"127\.0\.0\.1:50051 or \[::1\]:50051"):
                parse(text)

    def test_none(self) -> None:
        """An empty address is accepted only if the address is optional."""
        assert parse_address_or_none("") == ""
        with pytest.raises(typer.BadParameter):
            parse_address("")


class TestDatabaseTimeout:
    """How long a call may take in the database."""

    @pytest.mark.parametrize("span", [SECOND // 2, 10 * SECOND])
    def test_accepted(self, span: int) -> None:
        """Half a second, or any longer duration, is accepted."""
        assert Config(Installation(), database_timeout=span).database_timeout == span

    @pytest.mark.parametrize("span", [0, SECOND // 2 - 1])
    def test_refused(self, span: int) -> None:
        """A shorter duration is refused: a brief delay would count as an outage."""
        with pytest.raises(SetupError, match="--database-timeout must be at least 500ms"):
            Config(Installation(), database_timeout=span)


class TestRetention:
    """How long events are kept."""

    @pytest.mark.parametrize("span", [DAY, 400 * DAY, 10**20])
    def test_accepted(self, span: int) -> None:
        """A day, or any longer duration, is accepted; the default is 400 days."""
        assert Config(Installation(), event_retention=span).event_retention == span
        assert Config(Installation()).event_retention == 400 * DAY

    @pytest.mark.parametrize("span", [DAY - 1, 0, -DAY])
    def test_refused(self, span: int) -> None:
        """Less than a day is refused: that would be no audit trail, and removed events cannot be restored."""
        with pytest.raises(SetupError, match="--event-retention must be at least 1d"):
            Config(Installation(), event_retention=span)


FILE = Path("file.pem")


class TestTls:
    """The TLS files."""

    @pytest.mark.parametrize(
        ("tls", "message"),
        [
            ({"cert": FILE}, "--tls-cert and --tls-key must be given together"),
            ({"key": FILE}, "--tls-cert and --tls-key must be given together"),
            ({"client_ca": FILE}, "--tls-client-ca needs"),
            ({"key": FILE, "client_ca": FILE}, "must be given together"),
            ({"cert": FILE, "client_ca": FILE}, "must be given together"),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
    )
    def test_half(self, tls: dict[str, Path], message: str) -> None:
        """An incomplete set of files is refused: the server would be less safe than its operator believes."""
        with pytest.raises(SetupError, match=message):
            Tls(**tls)

    def test_whole(self) -> None:
        """Certificate and key enable TLS, with or without a client CA; without files there is none."""
        assert Tls(FILE, FILE)
        assert Tls(FILE, FILE, FILE)
        assert not Tls()


class TestInstallation:
    """Where an installation keeps its data."""

    def test_embedded(self, tmp_path: Path) -> None:
        """By default the database and the peppers are in the data folder."""
        installation = Installation(tmp_path)
        assert installation.database_file == tmp_path / "tumbler.db"
        assert installation.pepper_file == tmp_path / "pepper"

    @pytest.mark.parametrize("name", ["plain", "with space", "100%", "a%20b", "a?b#c", "ключ"])
    def test_any_folder(self, tmp_path: Path, name: str) -> None:
        """The database is in the data folder, whatever the folder's name."""
        folder = tmp_path / name
        folder.mkdir()
        store = open_store(Installation(folder).database_url, create=True)
        assert answers(store)
        store.close()
        assert (folder / "tumbler.db").exists()

    def test_relative_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative data folder is relative to the current folder."""
        monkeypatch.chdir(tmp_path)
        assert Installation(Path("data")).database_file == tmp_path / "data" / "tumbler.db"

    def test_named(self, tmp_path: Path) -> None:
        """A named database and a named pepper file override the defaults."""
        installation = Installation(tmp_path, "postgresql://host/name", tmp_path / "elsewhere")
        assert installation.database_url == "postgresql://host/name"
        assert installation.pepper_file == tmp_path / "elsewhere"

    def test_no_peppers(self, tmp_path: Path) -> None:
        """Without a pepper file, unless one was named, there are no peppers, and bcrypt proves each key."""
        assert Installation(tmp_path).peppers() == ()

    def test_named_and_missing(self, tmp_path: Path) -> None:
        """A named pepper file must exist."""
        with pytest.raises(SetupError, match="no pepper file"):
            Installation(tmp_path, pepper=tmp_path / "missing").peppers()

    def test_peppers(self, tmp_path: Path) -> None:
        """The peppers are those in the file."""
        pepper.create(tmp_path / "pepper")
        assert Installation(tmp_path).peppers() == pepper.load(tmp_path / "pepper")


def test_frozen() -> None:
    """A configuration is immutable."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(Installation()).threads = 1  # type: ignore[misc]
