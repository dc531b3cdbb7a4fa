"""The fence under everything: which connections are opened at all, and which protocols are spoken on them.

Its hooks ask about connections, not about exchanges; ``gateway`` has the others.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable
from typing import Any

from mitmproxy import connection, ctx, http
from mitmproxy.proxy import layer as proxy_layer
from mitmproxy.proxy import layers, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.mode_specs import UpstreamMode

from tidegate import edits, steps
from tidegate.endings import UNLISTED
from tidegate.entrance import Entrance, Tunnel, by_token
from tidegate.exchange import Exchange
from tidegate.guard import guarded
from tidegate.identity.proxy import SHARED
from tidegate.identity.verifier import Verifier
from tidegate.model import Denial
from tidegate.policy.policy import Policy, Unlisted

BROKEN = "the gateway failed"
"""The error of an upstream connection that was not opened because the fence failed."""

LEFT = "client disconnected"
"""The error of an upstream connection that was not opened because nobody waits for an answer; as mitmproxy says it."""


class Fence:
    """The part of the enforcement addon that stands at connections."""

    def __init__(self, policy: Policy, verifier: Verifier) -> None:
        self.policy = policy
        self.exchanges: dict[str, Exchange] = {}
        self.tunnels: set[str] = set()
        self.verifier = verifier
        self.entrance = Entrance()

    def deny_bug(self, hook: str, data: Any, bug: Exception) -> None:
        """Refuse what a hook was asked about, because the hook failed."""
        raise NotImplementedError

    def _seal(self, exchange: Exchange) -> None:
        raise NotImplementedError

    def _open(self, flow: http.HTTPFlow) -> Exchange:
        exchange = self.exchanges[flow.id] = Exchange(self.policy, flow)
        return exchange

    @guarded
    def http_connect(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Open a tunnel only for a caller, if the policy or the client says who it is for, and to a listed host.

        Who has not said it here is asked inside the tunnel, where the SDK puts its token.
        """
        shown = self.entrance.shown(self.policy, edits.fields(flow.request.headers))
        edits.hide_credentials(flow.request)
        if isinstance(shown, str):
            return self._verify_tunnel(flow, shown)
        self._tunnel(flow, None, shown)
        return None

    async def _verify_tunnel(self, flow: http.HTTPFlow, token: str) -> None:
        policy = self.policy
        answer = await self.verifier.identify(token, time.time())
        if policy is not self.policy:  # a reload in between: what the token means now, nobody has asked
            answer = await self.verifier.identify(token, time.time())
        found = by_token(answer, tunnelled=False)
        if flow.request.is_http2 or flow.request.is_http3:
            found = SHARED
        self._tunnel(flow, token, found if isinstance(found, Denial) else None)

    def _tunnel(self, flow: http.HTTPFlow, token: str | None, denial: Denial | None) -> None:
        if denial is None and not self._may_reach(flow.request.host.lower(), flow.request.port):
            denial = UNLISTED
        if denial is None:
            if not flow.client_conn.connected:
                return
            self.tunnels.add(flow.id)
            if not self.entrance.idle(self.policy, proxied=True):
                self.entrance.opened(flow.client_conn.id, Tunnel(token, edits.peer(flow).certificate))
            return
        exchange = self._open(flow)
        exchange.crossing.receive(steps.Stopped(denial))
        exchange.refuse()
        self._seal(exchange)

    @guarded
    def client_disconnected(self, client: connection.Client) -> None:
        """Forget what a client's connection said of who calls."""
        self.entrance.left(client.id)

    @guarded
    def next_layer(self, data: proxy_layer.NextLayer) -> None:
        """Speak HTTP/2 without TLS to a client that does; mitmproxy by itself ends such a connection."""
        context = data.context
        if not context.client.tls and data.data_client().startswith(b"PRI * HTTP/2.0"):
            context.client.alpn = b"h2"
            data.layer = layers.HttpLayer(context, HTTPMode.transparent)

    @guarded
    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> Awaitable[None] | None:
        """Be the fence under everything: no connection to anything that is not an upstream of the policy.

        Nor for a client that has left, of whom requests sent ahead are still read: mitmproxy would never close it.
        """
        if data.client.state is connection.ConnectionState.CLOSED:
            data.server.error = LEFT
            return None
        if any(each.flow.client_conn is data.client and each.wants_socket for each in self.exchanges.values()):
            data.server.alpn_offers = (b"http/1.1",)  # over HTTP/2 there is no upgrade
        address, mode = data.server.address, data.client.proxy_mode
        if data.server.tls and self._is_grpc(address):
            data.server.alpn_offers = (b"h2",)
        if isinstance(mode, UpstreamMode) and address == mode.address:
            return None  # the parent proxy; what goes through it was cleared for its own host
        if address is None or not self._may_reach(address[0].lower(), address[1]):
            data.server.error = "not an upstream of the policy"
        elif address[0].lower() not in self.policy.routes.hosts:
            return self._pin(data.server)
        return None

    @guarded
    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Speak HTTP/2 without TLS to the upstream of a gRPC connection, as gRPC does: it is known beforehand."""
        if not data.server.tls and self._is_grpc(data.server.address):
            data.server.alpn = b"h2"

    def _is_grpc(self, address: tuple[str, int] | Any) -> bool:
        """Say whether an address is the upstream of a gRPC connection."""
        if not self.policy.descriptors or address is None:
            return False
        origins = self.policy.routes.origins.items()
        return any(
            origin.host == address[0].lower() and origin.port == address[1]
            for origin, connections in origins
            if any(each.name in self.policy.descriptors for each in connections)
        )

    async def _pin(self, server: connection.Server) -> None:
        """Connect to an unlisted host at the address it has now, unless that is ours: a name can lead anywhere."""
        assert server.address is not None
        host, port = server.address[:2]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        addresses = [str(each[4][0]) for each in found]
        if not addresses or any(edits.is_local(each) for each in addresses):
            server.error = "not a public address"
        else:
            server.address = (addresses[0], port)

    @guarded
    def tcp_start(self, flow: Any) -> None:
        """Close raw TCP and UDP: nobody can inspect what it carries."""
        handler = self._handler(flow)
        if handler is not None and flow.client_conn in handler.transports:
            handler.close_connection(flow.client_conn)

    @guarded
    def tcp_message(self, flow: Any) -> None:
        """Blank what arrives on raw TCP or UDP before its connection is closed."""
        flow.messages[-1].content = b""

    udp_start = tcp_start
    udp_message = tcp_message

    def _may_reach(self, host: str, port: int) -> bool:
        routes = self.policy.routes
        if any(origin.host == host and origin.port == port for origin in routes.origins):
            return True
        return (
            self.policy.unlisted is Unlisted.PASS and host.rstrip(".") not in routes.hosts and not edits.is_local(host)
        )

    def _handler(self, flow: Any) -> Any:
        return ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)
