"""The door of the gate: whom a client's connection speaks for, before any request on it is looked at.

A tunnel (CONNECT) remembers the token it was opened with, in memory and for as long as its connection lives; each
request inside asks the verifier about it again, so that a token that ends or is revoked ends what it opened. A plain
request to a proxy shows its own token each time: programs before us may share one connection among many people.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tidegate.identity import proxy
from tidegate.identity.peers import Peers
from tidegate.model import Caller, Denial, Peer, Standing
from tidegate.policy.policy import Policy, ProxyAuthentication


@dataclass(frozen=True, slots=True)
class Tunnel:
    """How a tunnel was opened: the token, and the certificate of the TLS connection to the proxy itself."""

    token: str | None = field(repr=False)
    certificate: bytes | None = field(repr=False)


class Entrance:
    """What is known of the connections of clients. ``policy`` may be another at each call."""

    def __init__(self) -> None:
        self._tunnels: dict[str, Tunnel] = {}
        self._peers: tuple[Policy | None, Peers] = None, Peers(())

    def idle(self, policy: Policy, *, proxied: bool) -> bool:
        """Say whether connections tell nothing under this policy: then there is nothing to ask or remember."""
        return policy.identities is None or not (self._asks(policy, proxied=proxied) or self.peers(policy).any)

    def peers(self, policy: Policy) -> Peers:
        """Return who is known by certificate or address under a policy."""
        if self._peers[0] is not policy:
            self._peers = policy, Peers(policy.identities)
        return self._peers[1]

    def shown(self, policy: Policy, fields: Iterable[tuple[str, str]]) -> str | Denial | None:
        """Return the token that a request shows to the proxy, or why it must show one."""
        if not self._asks(policy, proxied=True):
            return None
        found = proxy.token(fields)
        if found is None and policy.proxy is ProxyAuthentication.REQUIRED:
            return proxy.MISSING
        return found

    def inside(self, policy: Policy, client: str) -> str | Denial | None:
        """Return the token of the tunnel that a request came through."""
        tunnel = self._tunnels.get(client)
        token = tunnel.token if tunnel is not None and self._asks(policy, proxied=True) else None
        if token is None and policy.proxy is ProxyAuthentication.REQUIRED:
            return replace(proxy.MISSING, status=401)  # a reload has begun to require it
        return token

    def has_tunnel(self, client: str) -> bool:
        """Say whether a client has opened a tunnel."""
        return client in self._tunnels

    def opened(self, client: str, tunnel: Tunnel) -> None:
        """Remember how a tunnel was opened."""
        self._tunnels[client] = tunnel

    def left(self, client: str) -> None:
        """Forget a connection."""
        self._tunnels.pop(client, None)

    def certified(self, client: str, peer: Peer) -> Peer:
        """Add the certificate of the TLS connection to the proxy, where the one inside the tunnel has none."""
        tunnel = self._tunnels.get(client)
        if tunnel is None or tunnel.certificate is None or peer.certificate is not None:
            return peer
        return replace(peer, certificate=tunnel.certificate)

    def by_peer(self, policy: Policy, peer: Peer, now: float) -> Standing | Denial | None:
        """Say whom a connection without a token speaks for."""
        found = self.peers(policy).identify(peer, now)
        return Standing(found) if isinstance(found, Caller) else found

    @staticmethod
    def _asks(policy: Policy, *, proxied: bool) -> bool:
        return proxied and policy.proxy is not ProxyAuthentication.OFF and policy.identities is not None


def by_token(answer: Caller | Denial, *, tunnelled: bool) -> Standing | Denial:
    """Turn what the verifier said of a proxy's token into whom the connection speaks for."""
    if isinstance(answer, Caller):
        return Standing(answer, by_token=True)
    return answer if tunnelled else proxy.by_proxy(answer)
