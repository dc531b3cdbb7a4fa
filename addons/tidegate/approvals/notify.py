"""Sends letters about approvals: to webhooks, and by e-mail. In a thread of its own; nobody waits for it.

A receiver that fails is tried again, later each time; what could not be delivered in the end is a line in the log. No
decision ever depends on a letter. Webhooks are https (http to this machine alone), no redirect is followed, and the
environment's proxies are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import http.client
import itertools
import logging
import queue
import smtplib
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from tidegate.approvals import letters
from tidegate.approvals.letters import Letter
from tidegate.approvals.spec import Mail, Target, Webhook
from tidegate.identity.credential import CredentialError, resolve
from tidegate.identity.reference import NotAReference

log = logging.getLogger("tidegate")

TRIES = 6
WAITS = (1.0, 5.0, 25.0, 120.0, 600.0)
"""Seconds between tries: 12 minutes in all, about as long as a request waits for its approval by default."""
TIMEOUT = 10.0
WAITING = 1000
"""Letters that may wait. A receiver that is away for long must not fill the memory."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class NotSent(Exception):
    """A letter was not delivered. ``again``: another try may help. Says why, never to which address."""

    def __init__(self, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.again = again


class Notifier:
    """The thread. ``targets`` are those of the policy in force; ``start`` it before use, ``close`` it after."""

    def __init__(
        self,
        targets: Callable[[], Sequence[Target]],
        clock: Callable[[], float] = time.monotonic,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self._targets = targets
        self._clock = clock
        self._waits = waits
        self._inbox: queue.SimpleQueue[Letter | None] = queue.SimpleQueue()
        self._later: list[tuple[float, int, int, str, Letter, Target]] = []
        self._numbers = itertools.count()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tidegate notify", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def tell(self, letter: Letter) -> None:
        """Have a letter sent. Never waits, never raises."""
        if self._inbox.qsize() < WAITING:
            self._inbox.put(letter)
        else:
            log.warning("approvals: too many letters are waiting; one of %s was not sent", letter.approval)

    def close(self) -> None:
        """Send what has not been tried yet, once, and end."""
        self._closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(2 * TIMEOUT)

    # ── in the thread ────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            wait = max(0.0, self._later[0][0] - self._clock()) if self._later else None
            letter = None
            with contextlib.suppress(queue.Empty):
                letter = self._inbox.get(timeout=wait)
            if letter is not None:
                for target in self._targets():
                    if letter.event in target.events:
                        self._try(0, name_of(letter, target), letter, target)
            elif self._closing and self._inbox.empty():
                break
            while self._later and self._later[0][0] <= self._clock() and not self._closing:
                _, _, tried, name, again, target = heapq.heappop(self._later)
                self._try(tried, name, again, target)
        for _, _, _, _, late, _ in self._later:
            log.error("approvals: a letter about %s was not delivered before the gate stopped", late.approval)

    def _try(self, tried: int, name: str, letter: Letter, target: Target) -> None:
        try:
            send(letter, target, name)
        except NotSent as why:
            if why.again and tried < len(self._waits) and len(self._later) < WAITING and not self._closing:
                due = self._clock() + self._waits[tried]
                heapq.heappush(self._later, (due, next(self._numbers), tried + 1, name, letter, target))
                return
            log.error("approvals: a letter about %s was not delivered: %s", letter.approval, why)
        except Exception as bug:  # noqa: BLE001 - one letter must not end the sending of all others
            log.error("approvals: a letter about %s was not delivered: %s", letter.approval, type(bug).__name__)


def name_of(letter: Letter, target: Target) -> str:
    """Name a letter to a receiver: the same one if another gate, or this one after a crash, sends it once more."""
    to = target.url if isinstance(target, Webhook) else ", ".join(target.to)
    return f"msg_{hashlib.sha256(f'{letter.approval} {letter.step} {letter.event} {to}'.encode()).hexdigest()[:32]}"


def send(letter: Letter, target: Target, name: str) -> None:
    """Deliver a letter once. ``name`` is the same for each try, so that a receiver can tell. Raises ``NotSent``."""
    try:
        if isinstance(target, Webhook):
            _post(letter, target, name)
        else:
            _mail(letter, target)
    except (CredentialError, NotAReference) as why:
        raise NotSent(str(why), again=True) from None


def _post(letter: Letter, target: Webhook, name: str) -> None:
    address = resolve(target.url, "approvals.notify").reveal()
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise NotSent("its address is not https", again=False)
    data = letters.body(letter, target.form)
    headers = {"content-type": "application/json", "user-agent": "tidegate"}
    if target.secret is not None:
        secret = letters.key(resolve(target.secret, "approvals.notify").reveal())
        headers |= letters.signature(secret, name, int(time.time()), data)
    request = urllib.request.Request(address, data, headers)  # noqa: S310 - looked at above
    try:
        with _opener().open(request, timeout=TIMEOUT) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        error.close()
        again = error.code in (408, 409, 425, 429) or error.code >= 500
        raise NotSent(f"it answered with status {error.code}", again=again) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NotSent(f"it could not be reached: {type(reason).__name__}", again=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> NoReturn:
        raise NotSent("it redirects", again=False)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirect(),
    ):
        opener.add_handler(handler)
    return opener


def _mail(letter: Letter, target: Mail) -> None:
    message = letters.mail(letter, target.sender, target.to)
    local = target.host in LOOPBACK
    try:
        with smtplib.SMTP(target.host, target.port, timeout=TIMEOUT) as server:
            if not local:  # a relay on this machine may speak plainly; nothing else may
                server.starttls(context=ssl.create_default_context())
            if target.user is not None and target.password is not None:
                server.login(target.user, resolve(target.password, "approvals.notify").reveal())
            server.send_message(message)
    except smtplib.SMTPResponseException as error:
        raise NotSent(f"the mail server answered {error.smtp_code}", again=400 <= error.smtp_code < 500) from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(f"the mail server could not be used: {type(error).__name__}", again=True) from None
