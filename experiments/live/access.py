"""Who may use the live server: pages of its own address, and elsewhere than on this machine, whoever has the token."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import web

LOCAL = ("localhost", "127.0.0.1", "::1")


class Access:
    """Checks of requests.

    A page of another site that a user visits may reach this machine, too: what its browser sends names that site as
    `Origin`, or, after a change of the site's address in the name service, as `Host`. Neither is let in.

    Args:
        host: Address that the server is bound to.
        token: What clients have to know; drawn if the server is bound elsewhere than to this machine and none is given,
            none is needed otherwise.
        allowed_hosts: Further names by which the server may be called, such as that of a proxy.
    """

    def __init__(self, host: str, token: str | None = None, allowed_hosts: Sequence[str] = ()) -> None:
        self.is_local = host in LOCAL
        self.token = token or ("" if self.is_local else secrets.token_urlsafe(16))
        own = () if self.is_local else (host, socket.gethostname())
        self._hosts = {name.lower() for name in (*LOCAL, *own, *allowed_hosts)}

    def check(self, request: web.Request) -> None:
        """Refuse a request of another site.

        Raises:
            web.HTTPForbidden: If `Host` names another, or `Origin` is not the page of that host.
        """
        called = request.headers.get("Host", "")
        name = _host_of(f"//{called}")
        if not (name in self._hosts or (not self.is_local and _is_address(name))):
            raise web.HTTPForbidden(text=f"this server is not {called[:100]!r}; see allowed_hosts\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{called}".lower(), f"https://{called}".lower()):
            raise web.HTTPForbidden(text=f"a page of {origin[:100]!r} may not use this server\n")

    def admits(self, token: str) -> bool:
        """Tell whether a client knows the token."""
        return hmac.compare_digest(token.encode(), self.token.encode()) if self.token else True


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Tell whether a name is a numeric address, which no name service can turn into another."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
