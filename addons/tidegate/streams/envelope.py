"""What some events come in: an object that holds the event as JSON in base64.

Bedrock's ``invoke-with-response-stream`` is such an API: the payload is ``{"bytes": ..., "p": ...}``, and the event of
the model's own API is in ``bytes``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from tidegate.dialects.body import dump, strict_json
from tidegate.model import Denial
from tidegate.streams.events import JsonObject, stretch
from tidegate.streams.framing import Frame


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event's. ``outer`` is the object around it, ``name`` the field of it that holds the event.

    ``padding`` is the outer field of random text that hides sizes. ``rest`` is what else the object holds.
    """

    frame: Frame = field(repr=False)
    outer: JsonObject = field(repr=False)
    name: str
    padding: str | None

    @property
    def rest(self) -> JsonObject:
        """The fields of the object around the event but for the event and the padding."""
        return {key: value for key, value in self.outer.items() if key not in (self.name, self.padding)}


def seal(like: object, event: JsonObject, *, alone: bool) -> bytes:
    """Write an event as a frame's data: in an envelope padded to the old length, ``alone`` without its ``rest``."""
    if not isinstance(like, Envelope):
        return dump(event)
    outer = {key: value for key, value in like.outer.items() if not alone or key in (like.name, like.padding)}
    old, new = like.outer[like.name], base64.b64encode(dump(event)).decode()
    outer[like.name] = new
    if like.padding is not None and isinstance(pad := outer.get(like.padding), str) and isinstance(old, str):
        outer[like.padding] = stretch(pad, len(pad) + len(old) - len(new))
    return dump(outer)


def open_up(value: object, frame: Frame, name: str, padding: str | None) -> tuple[object, Envelope | Frame] | None:
    """Take an event out of the object around it; ``None`` where it cannot be read.

    An object without the field ``name`` is the event itself, and comes back with its frame: so errors come.
    """
    if not isinstance(value, dict) or name not in value:
        return value, frame
    held = value[name]
    try:
        inner = strict_json(base64.b64decode(held, validate=True)) if isinstance(held, str) else None
    except (binascii.Error, ValueError):  # ValueError: a character that is not ASCII
        return None
    return None if inner is None or isinstance(inner, Denial) else (inner, Envelope(frame, value, name, padding))
