"""Upstreams over TLS with HTTP/1 and HTTP/2, certificates for them, and network namespaces for the transparent mode."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.harness import Received, Upstream


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own and one server certificate for some names."""

    ca: Path
    chain: Path

    def context(self, protocols: list[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain)
        context.set_alpn_protocols(protocols)
        return context


def authority(folder: Path, *names: str) -> Authority:
    """Make a CA and a certificate for host names and addresses."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, ca: bool
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([general(each) for each in names]), critical=False
            )
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def general(name: str) -> x509.GeneralName:
        with contextlib.suppress(ValueError):
            return x509.IPAddress(ip_address(name))
        return x509.DNSName(name)

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca, chain = folder / "upstream-ca.pem", folder / "upstream.pem"
    ca.write_bytes(certificate("test ca", root, "test ca", root, ca=True))
    secret = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(secret + certificate(names[0], leaf, "test ca", root, ca=False))
    return Authority(ca, chain)


@dataclass
class _Stream:
    """One HTTP/2 request as it arrives; answers are written as HTTP/1 and taken apart again."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class SecureUpstream(Upstream):
    """An upstream over TLS on any address; with ``h2`` first among ``protocols`` it speaks HTTP/2.

    ``answer`` is the text of every chat answer; it comes as an event stream if the request asks for one. ``versions``
    are the protocols of the requests, in order.
    """

    def __init__(self, context: ssl.SSLContext | None, *, host: str = "127.0.0.1", port: int | None = None) -> None:
        super().__init__()
        self.port = port or self.port
        self.host = host
        self.context = context
        self.namespace: Path | None = None
        self.versions: list[str] = []
        self.pieces: Callable[[Received], tuple[str, list[bytes]]] = lambda _: ("application/json", [b"{}"])

    def __enter__(self) -> SecureUpstream:
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(10), "the upstream did not start"
        return self

    @property
    def url(self) -> str:
        scheme = "http" if self.context is None else "https"
        return f"{scheme}://{self.host}:{self.port}"

    def _run(self) -> None:
        if self.namespace is not None:
            enter(self.namespace)
        asyncio.set_event_loop(self._loop)
        starting = asyncio.start_server(self._serve, self.host, self.port, ssl=self.context)
        server = self._loop.run_until_complete(starting)
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen = writer.get_extra_info("ssl_object")
        if chosen is not None and chosen.selected_alpn_protocol() == "h2":
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._serve_h2(reader, writer)
            writer.close()
            return
        self.default = self._write
        await super()._serve(reader, writer)

    async def _write(self, received: Received, writer: asyncio.StreamWriter) -> None:
        self.versions.append("1.1")
        kind, pieces = self.pieces(received)
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def _serve_h2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        link.initiate_connection()
        streams: dict[int, _Stream] = {}
        writer.write(link.data_to_send())
        while data := await reader.read(65536):
            for event in link.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    streams[event.stream_id] = _Stream(dict(event.headers))
                    self.data += repr(event.headers).encode()
                elif isinstance(event, h2.events.DataReceived):
                    streams[event.stream_id].body += event.data
                    self.data += event.data
                    link.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self._answer_h2(link, event.stream_id, streams.pop(event.stream_id))
            writer.write(link.data_to_send())
            await writer.drain()

    def _answer_h2(self, link: h2.connection.H2Connection, stream: int, request: _Stream) -> None:
        fields = request.headers
        received = Received(fields[":method"], fields[":path"], fields, request.body)
        self.requests.append(received)
        self.versions.append("2")
        kind, pieces = self.pieces(received)
        link.send_headers(stream, [(":status", "200"), ("content-type", kind), ("alt-svc", 'h3=":443"')])
        for piece in pieces:
            link.send_data(stream, piece)
        link.end_stream(stream)


# ── network namespaces ───────────────────────────────────────────────────────────────────────────────────────────────


def enter(namespace: Path) -> None:
    """Put the calling thread into a network namespace."""
    with namespace.open() as handle:
        os.setns(handle.fileno(), os.CLONE_NEWNET)


def inside[T](namespace: Path, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own inside a network namespace; return its result or raise its exception."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            enter(namespace)
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    if failed:
        raise failed[0]
    return found[0]


@dataclass(frozen=True)
class Network:
    """Two namespaces joined by a cable: a client, and a router whose REDIRECT leads web traffic into a proxy."""

    client: str
    router: str

    def path(self, name: str) -> Path:
        return Path("/run/netns") / name


SERVER = "198.51.100.7"  # TEST-NET-2 (RFC 5737): an address that no machine has
NAME = "model.example.test"
TURNED = "rebound.example.org"  # a public name whose owner let it lead to the machine that asks


def missing() -> str | None:
    """Say why network namespaces with REDIRECT cannot be used here; ``None`` if they can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    probe = f"tgp{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    rule = ["ip", "netns", "exec", probe, "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "REDIRECT"]
    failed = subprocess.run(rule, capture_output=True, check=False).returncode
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "iptables has no REDIRECT here" if failed else None


@contextlib.contextmanager
def network(proxy: int, *ports: int) -> Iterator[Network]:
    """Make the namespaces; what the client sends to ``ports`` of any host arrives at port ``proxy`` of the router."""
    number = os.getpid()
    net = Network(f"tgc{number}", f"tgr{number}")
    hosts = Path("/etc/netns") / net.router

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in (net.client, net.router):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "link",
            "add",
            f"c{number}",
            "netns",
            net.client,
            "type",
            "veth",
            "peer",
            "name",
            f"r{number}",
            "netns",
            net.router,
        )
        ip("-n", net.client, "addr", "add", "10.91.0.2/24", "dev", f"c{number}")
        ip("-n", net.router, "addr", "add", "10.91.0.1/24", "dev", f"r{number}")
        ip("-n", net.client, "link", "set", f"c{number}", "up")
        ip("-n", net.router, "link", "set", f"r{number}", "up")
        ip("-n", net.client, "route", "add", "default", "via", "10.91.0.1")
        ip("-n", net.router, "addr", "add", f"{SERVER}/32", "dev", "lo")
        for port in ports:
            rule = ["iptables", "-t", "nat", "-A", "PREROUTING", "-i", f"r{number}", "-p", "tcp", "--dport", str(port)]
            ip("netns", "exec", net.router, *rule, "-j", "REDIRECT", "--to-ports", str(proxy))
        hosts.mkdir(parents=True)
        (hosts / "hosts").write_text(f"127.0.0.1 localhost\n{SERVER} {NAME}\n127.0.0.1 {TURNED}\n")
        yield net
    finally:
        for name in (net.client, net.router):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(hosts, ignore_errors=True)
