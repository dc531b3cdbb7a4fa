"""Reads a SAML provider's metadata file, and again when it changes. The shell around ``saml.read_metadata``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.identity.saml import Provider, read_metadata
from tidegate.policy.policy import SamlIdentity

FILE_BYTES = 4 * 1024 * 1024

logger = logging.getLogger(__name__)


def load_metadata(path: Path, issuer: str | None, now: float) -> Provider | str:
    """Read a metadata file; what is wrong with it, in a few words, where it cannot be used."""
    try:
        if path.stat().st_size > FILE_BYTES:
            return "more than 4 MiB"
        return read_metadata(path.read_bytes(), issuer, now)
    except OSError as error:
        return error.strerror or "a file that cannot be read"


class MetadataFile:
    """The metadata of one identity. A file that becomes unusable leaves the last good one, until that has ended."""

    def __init__(self, identity: SamlIdentity, now: Callable[[], float] = time.time) -> None:
        self.identity = identity
        self._path = Path(identity.metadata)
        self._now = now
        self._stamp: tuple[int, int, int] | None = None
        self._provider: Provider | None = None

    def provider(self) -> Provider | None:
        """Return what the file says now, unless that has ended."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        if stamp != self._stamp:
            self._stamp = stamp
            found = load_metadata(self._path, self.identity.issuer, self._now())
            if isinstance(found, str):
                kept = "the last good one stays" if self._provider else "nobody can sign in"
                logger.error("identity %s: metadata %s: found %s; %s", self.identity.name, self._path, found, kept)
            else:
                self._provider = found
        until = None if self._provider is None else self._provider.until
        if until is not None and until <= self._now():
            self._provider = None
            logger.error(
                "identity %s: metadata %s: it has ended (validUntil); nobody can sign in",
                self.identity.name,
                self._path,
            )
        return self._provider
