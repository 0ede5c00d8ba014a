"""The address of a server, and whether the connection leaves this machine."""

import ipaddress
import re

__all__ = ["is_loopback"]

_LOCAL_SCHEMES = ("unix:", "unix-abstract:")
_HOST_SCHEME = re.compile(r"dns:(?:///)?|ipv4:|ipv6:")


def is_loopback(target: str) -> bool:
    """Return whether a gRPC target can only be this machine, so that plaintext to it crosses no network.

    That is `localhost`, an address of 127.0.0.0/8 or ::1, or a Unix socket. In doubt it returns False. Another name may
    resolve to anything, and so may `localhost` if the target names its own name server (`dns://<server>/localhost`).
    Every address of an `ipv4:` list must be a loopback address.
    """
    if target.startswith(_LOCAL_SCHEMES):
        return True
    scheme = _HOST_SCHEME.match(target)
    addresses = target[scheme.end() :] if scheme else target
    return all(_is_loopback_host(_host(address)) for address in addresses.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    if address.count(":") > 1:
        return address
    return address.partition(":")[0]


def _is_loopback_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
