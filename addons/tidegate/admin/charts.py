"""Bars as SVG, drawn here and styled by the style sheet: no script, no inline style. Pure.

Each chart is an image with a sentence for who cannot see it; the numbers stand in a table beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 720, 160
ORDER = ("answered", "denied", "failed", "aborted", "open")
"""Parts of a bar from the bottom up; the style sheet has a colour for each."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name in words, and how many of what."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """How high it is."""
        return sum(self.parts.values())


def bars(data: Sequence[Bar], told: str) -> Markup:
    """Draw bars side by side, each with its parts on top of one another; ``told`` says in words what can be seen."""
    most = max((bar.total for bar in data), default=0) or 1
    width = WIDTH / max(1, len(data))
    out = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, told)]
    for at, bar in enumerate(data):
        bottom = float(HEIGHT)
        for part in (*ORDER, *sorted(set(bar.parts) - set(ORDER))):
            count = bar.parts.get(part, 0)
            if not count:
                continue
            height = max(1.5, count / most * (HEIGHT - 4))
            bottom -= height
            out.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">').format(
                    part if part in ORDER else "other", at * width + width * 0.1, max(0.0, bottom), width * 0.8, height
                )
                + Markup("<title>{}: {} {}</title></rect>").format(bar.name, count, part)
            )
    highest = Markup('<text class="most" x="4" y="14" aria-hidden="true">{:,}</text>').format(most)
    return Markup("").join([*out, highest, Markup("</svg>")])


def share(count: int, most: int) -> Markup:
    """Draw one flat bar for a row of a table, which says the number itself."""
    width = 100 * count / most if most else 0
    return Markup(
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="0" width="{:.1f}" height="8"></rect></svg>'
    ).format(width)
