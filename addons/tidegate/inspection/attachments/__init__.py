"""The text of attachments: documents, archives, mail, notebooks, databases. Pure: bytes in, texts out, or why not."""

from __future__ import annotations

from tidegate.inspection.attachments.found import REASONS, Extraction, Text
from tidegate.inspection.attachments.reading import extract, is_quick

__all__ = ["REASONS", "Extraction", "Text", "extract", "is_quick"]
