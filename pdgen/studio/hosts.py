"""Which addresses only this machine reaches."""

import ipaddress

LOCAL = ("127.0.0.1", "localhost", "::1")


def is_local(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
