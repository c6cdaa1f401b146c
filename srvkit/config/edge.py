"""What stands between the network and a handler: access, TLS and PROXY, put together from their tables.

What cannot go together is added to the problems of the file. How a server class is made of it is
`compose`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srvkit.config.model import Problems, ServerSettings
from srvkit.config.toml import Key
from srvkit.contracts import Stage
from srvkit.net.access import Rules, parse_rule
from srvkit.net.address import Address
from srvkit.net.connection import Connection, TimedConnection
from srvkit.net.tls_context import ServerTls
from srvkit.server.admission import ProxyStage, TlsStage
from srvkit.server.limits import Access, Capacity, PerClient, TrustedProxies


class Edge:
    """The edge of one server: the stages of its admission, and what its class has of it as `attributes`.

    `is_complete` is False where certificates are configured and were not loaded: such a server must not
    be made, for it would serve in the clear.
    """

    def __init__(self, key: Key, settings: ServerSettings, tls: ServerTls | None, problems: Problems) -> None:
        self._key = key
        self._settings = settings
        self._tls = tls
        self._problems = problems
        proxy, access = settings.proxy, settings.access
        self._access = self._rules("access", {"allow": access.allow, "deny": access.deny})
        self._trusted = self._rules("proxy", {"trusted": proxy.trusted} if proxy is not None else {})
        self.is_complete = settings.tls is None or tls is not None
        self.attributes: dict[str, Any] = {} if tls is None else {"tls": tls}

    def stages(self, hooks: Sequence[Stage], *, has_capacity: bool) -> tuple[Stage, ...]:
        """Return the stages in their order; `hooks` are those of plugins and of the model.

        `has_capacity` is whether more than one request can be open at once.
        """
        settings, limits, stages = self._settings, self._settings.limits, list[Stage]()
        if has_capacity:
            stages.append(Capacity(limits.max_connections, limits.when_full))
        if settings.proxy is not None:
            stages += TrustedProxies(self._trusted), ProxyStage(settings.proxy)
        if self._access:
            stages.append(Access(self._access))
        if limits.max_per_client or limits.connect_rate:
            stages.append(PerClient(limits.max_per_client, limits.connect_rate))
        stages += hooks
        if self._tls is not None and self._tls.begins_at_once:
            stages.append(TlsStage(self._tls))
        return tuple(stages)

    def check(self, addresses: Sequence[Address]) -> None:
        """Report what these addresses cannot have."""
        settings = self._settings
        is_stream = addresses[0].kind == "stream"
        for table in ("tls", "proxy"):
            if getattr(settings, table) is not None and not is_stream:
                message = f"only streams (tcp, unix) can have it, not {addresses[0]}"
                self._problems.add((*self._key, table), message)
        if settings.proxy is not None and not settings.proxy.trusted:
            message = 'nobody may speak the PROXY protocol: name the proxies, as in ["127.0.0.1/32"]'
            self._problems.add((*self._key, "proxy", "trusted"), message)
        may_be_unix = is_stream and any(not one.is_internet for one in addresses)
        for table, rules in (("access", self._access), ("proxy", self._trusted)):
            if rules.has_users and not may_be_unix:
                message = (
                    "uid and gid are known of peers on Unix stream sockets only, and there is none in listen"
                )
                self._problems.add((*self._key, table), message)

    def connection_class(self, *, keeps_limits: bool) -> type[Connection]:
        """Return what connections are to be; with `keeps_limits` they keep the timeouts themselves."""
        if self._tls is None:
            return TimedConnection if keeps_limits else Connection
        from srvkit.net.tls_connection import TimedTlsConnection, TlsConnection

        return TimedTlsConnection if keeps_limits else TlsConnection

    def _rules(self, table: str, lists: Mapping[str, Sequence[str]]) -> Rules:
        """Return the rules of a table, empty where one of them is wrong."""
        before = len(self._problems)
        for name, entries in lists.items():
            for index, text in enumerate(entries):
                try:
                    parse_rule(text)
                except ValueError as error:
                    self._problems.add((*self._key, table, name, index), str(error))
        if lists and len(self._problems) == before:
            try:
                return Rules(*lists.values())
            except ValueError as error:
                self._problems.add((*self._key, table), str(error))
        return Rules(())
