"""Ports: whether an address is free, and a port that workers share."""

import socket

import pytest

from tumbler_server.errors import CannotListen, SetupError
from tumbler_server.ports import demand_free, reserved


def listener(port: int, shares: bool, host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket like a server's."""
    ours = socket.socket()
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind((host, port))
        ours.listen()
    except OSError:
        ours.close()
        raise
    return ours


class TestReserved:
    """The port reserved for the workers."""

    @pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "0.0.0.0:0"])
    def test_port_0(self, address: str) -> None:
        """Port 0 becomes a free port."""
        with reserved(address) as port:
            assert 0 < port < 65_536

    def test_workers_share_it(self) -> None:
        """All workers listen on the reserved port, and only they get connections."""
        with reserved("127.0.0.1:0") as port, listener(port, shares=True) as one, listener(port, shares=True) as two:
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(16)]
            one.setblocking(False)
            two.setblocking(False)
            accepted = []
            for worker in (one, two):
                while True:
                    try:
                        accepted.append(worker.accept()[0])
                    except BlockingIOError:
                        break
            assert len(accepted) == 16
            for connection in clients + accepted:
                connection.close()

    def test_nobody_there(self) -> None:
        """While no worker listens, connections are refused at once."""
        with reserved("127.0.0.1:0") as port, pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    def test_kept_from_others(self) -> None:
        """A server that does not share its port cannot have it until it is released."""
        with reserved("127.0.0.1:0") as port, pytest.raises(OSError, match="in use"):
            listener(port, shares=False)
        listener(port, shares=False).close()

    @pytest.mark.parametrize("shares", [False, True])
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 - expected to be refused
    def test_taken(self, host: str, shares: bool) -> None:
        """A port on which another server listens is refused, even if that server shares it."""
        with listener(0, shares) as other:
            address = f"{host}:{other.getsockname()[1]}"
            with pytest.raises(CannotListen, match=f"cannot listen on {address}: is another server"), reserved(address):
                pass
            with pytest.raises(CannotListen, match=f"cannot listen on {address}: is another server"):
                demand_free(address)
        demand_free(address)

    @pytest.mark.parametrize("shares", [False, True])
    def test_used_before(self, shares: bool) -> None:
        """A port whose last connections have just been closed can be reserved, whether or not its server shared it."""
        with listener(0, shares) as other:
            port = other.getsockname()[1]
            client = socket.create_connection(("127.0.0.1", port))
            served = other.accept()[0]
            served.close()  # the side that closes first enters TIME_WAIT
            client.recv(1)
            client.close()
        with reserved(f"127.0.0.1:{port}") as kept:
            assert kept == port

    @pytest.mark.parametrize("address", ["192.0.2.1:0", "[2001:db8::1]:0"])
    def test_not_ours(self, address: str) -> None:
        """An address that this machine does not have is refused, and the message names it."""
        with pytest.raises(SetupError, match="cannot listen on "), reserved(address):
            pass
