"""TLS, with the tests' own certificate authority."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.e2e.service import Client, Service
from tests.harness import Refused

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@dataclass(frozen=True)
class Authority:
    """A folder with a certificate authority and the certificates that it signed."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def sign(self, name: str, extension: str) -> None:
        """Make a private key ``<name>.key`` and its certificate ``<name>.pem``."""
        self.openssl("req", "-new", *_NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self / f"{name}.ext").write_text(extension)
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        self.openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *authority,
            "-days",
            "2",
            "-extfile",
            f"{name}.ext",
            "-out",
            f"{name}.pem",
        )

    def openssl(self, *arguments: str) -> None:
        """Run openssl in the folder."""
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def credentials(self, client: str = "") -> grpc.ChannelCredentials:
        """Return a client's credentials: the trusted authority, and the certificate of ``client`` if given."""
        pair = [(self / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else [None, None]
        return grpc.ssl_channel_credentials((self / "ca.pem").read_bytes(), *pair)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that has signed a server's and a client's certificate."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.openssl(
        "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Tests' authority"
    )
    made.sign("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    made.sign("client", "extendedKeyUsage=clientAuth")
    return made


def flags(authority: Authority, client_ca: bool = False) -> list[str]:
    """Return the server's TLS flags, with or without required client certificates."""
    demanded = ["--tls-client-ca", str(authority / "ca.pem")] if client_ca else []
    return ["--tls-cert", str(authority / "server.pem"), "--tls-key", str(authority / "server.key"), *demanded]


def verdict(service: Service, credentials: grpc.ChannelCredentials | None) -> str:
    """Verify the operator's key over these credentials. Return UNREACHABLE if the connection fails."""
    client = Client(service.target, service.key, credentials)
    try:
        return client.verdict(service.key)
    except Refused as refused:
        if refused.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        return "UNREACHABLE"
    finally:
        client.close()


def test_keys_travel_encrypted(embedded: Service, authority: Authority) -> None:
    """With a certificate, only clients that trust its authority can connect, and plaintext connections fail."""
    embedded.start(*flags(authority))
    assert verdict(embedded, authority.credentials()) == "VALID"
    assert verdict(embedded, None) == "UNREACHABLE"
    assert verdict(embedded, grpc.ssl_channel_credentials()) == "UNREACHABLE"
    listed = embedded.cli("keys", "list", "--tls-ca", str(authority / "ca.pem"))
    assert listed.returncode == 0, listed.stderr
    assert embedded.cli("keys", "list").returncode == 3


def test_the_network_may_be_listened_to_with_tls(embedded: Service, authority: Authority) -> None:
    """With a certificate, a public address needs no --insecure, and reflection is off."""
    embedded.start(*flags(authority), listen="0.0.0.0:0")
    port = embedded.target.rpartition(":")[2]
    client = Client(f"localhost:{port}", embedded.key, authority.credentials())
    assert client.verdict(embedded.key) == "VALID"
    with pytest.raises(Refused) as refused:
        client.ask_reflection()
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED
    client.close()


def test_clients_may_have_to_show_a_certificate(embedded: Service, authority: Authority) -> None:
    """With --tls-client-ca, a client without a certificate cannot connect."""
    embedded.start(*flags(authority, client_ca=True))
    assert verdict(embedded, authority.credentials("client")) == "VALID"
    assert verdict(embedded, authority.credentials()) == "UNREACHABLE"
    shown = [f"--tls-{flag}={authority / name}" for flag, name in (("ca", "ca.pem"), ("cert", "client.pem"))]
    listed = embedded.cli("keys", "list", *shown, f"--tls-key={authority / 'client.key'}")
    assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize(
    ("half", "named"),
    [
        (["--tls-cert", "server.pem"], "must be given together"),
        (["--tls-key", "server.key"], "must be given together"),
        (["--tls-client-ca", "ca.pem"], "--tls-cert and --tls-key"),
        (["--tls-cert", "server.pem", "--tls-key", "nothing.key"], "nothing.key"),
        (["--tls-cert", "server.pem", "--tls-key", "client.key"], "do not match"),
        (["--tls-cert", "server.ext", "--tls-key", "server.key"], "not PEM"),
    ],
)
def test_half_of_tls_is_refused(embedded: Service, authority: Authority, half: list[str], named: str) -> None:
    """If a TLS file is missing, unreadable or mismatched, the server does not start, and the error says why."""
    files = [word if word.startswith("--") else str(authority / word) for word in half]
    embedded.launch(*files)
    try:
        assert embedded.wait(10) == 1
    finally:
        embedded.close()
    assert named in embedded.stderr
    assert "Traceback" not in embedded.stderr
    assert embedded.stdout == ""
