"""Pages out of templates. Everything that is put into one is escaped; what a stranger wrote is shown harmless.

No page has a script or a style of its own: both are files of the listener, and the content security policy takes
nothing else. Without scripts the pages work all the same, they only do not follow what happens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tidegate.admin.answers import SECURE
from tidegate.admin.doors import Visit, rights_of
from tidegate.admin.services import Services
from tidegate.evidence.queries import printable
from tidegate.model import Caller, Denial
from tidegate.policy.policy import AdminRight

HERE = Path(__file__).parent
NAVIGATION = (
    ("/", "Now", AdminRight.OVERVIEW),
    ("/exchanges", "Exchanges", AdminRight.EXCHANGES),
    ("/approvals", "Approvals", None),
    ("/policy", "Policy", AdminRight.OVERVIEW),
    ("/health", "Health", AdminRight.OVERVIEW),
)
"""The pages, each with the right that shows it; ``None``: everybody who has signed in sees what is his there."""

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types tidegate"
)
FIELDS = {**SECURE, "content-security-policy": CONTENT_SECURITY}
_MASK = re.compile(r"\[REDACTED(?::[a-z0-9-]{1,64})?\]|\[BLOCKED(?::[a-z0-9-]{1,64})?\]")


def page(visit: Visit, template: str, title: str, *, status: int = 200, **values: Any) -> Response:
    """Render a page for who asks."""
    policy = visit.services.policy()
    rights = rights_of(policy, visit.caller) if visit.caller is not None else frozenset()
    return _rendered(
        template,
        status,
        title=title,
        navigation=[(path, name) for path, name, right in NAVIGATION if right is None or right in rights],
        at=visit.request.url.path,
        caller=visit.caller,
        csrf=visit.session.csrf if visit.session else "",
        mode=str(policy.mode),
        **values,
    )


def bare(template: str, title: str, *, status: int = 200, **values: Any) -> Response:
    """Render a page for somebody nobody knows."""
    return _rendered(
        template, status, title=title, navigation=[], at="", caller=None, csrf="", mode="enforce", **values
    )


def turned_away(request: Request, services: Services, denial: Denial) -> Response:
    """Answer somebody who may not see a page: whoever is not signed in may do so, and comes back here."""
    if denial.status == 401 and request.method == "GET":
        return RedirectResponse(f"/sign-in?back={quote(back_to(request.url.path + _query(request)))}", 303)
    del services
    return bare("refused.html", "Not allowed", status=denial.status, message=denial.message)


def back_to(path: str) -> str:
    """Return where somebody may be sent after signing in: a path of this listener, and nothing that leads elsewhere."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and len(path) <= 2048
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    return path if plain and not parts.netloc and not parts.scheme and not path.startswith("/sign-") else "/"


def _query(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""


def _rendered(template: str, status: int, **values: Any) -> Response:
    text = ENVIRONMENT.get_template(template).render(values)
    return HTMLResponse(text, status, FIELDS)


def marked(text: str | None) -> Markup:
    """Return a text of a recording with each place where something was masked marked; all else escaped."""
    if text is None:
        return Markup('<span class="quiet">not kept</span>')
    clean, out, at = printable(text), [Markup("")], 0
    for found in _MASK.finditer(clean):
        out += [Markup.escape(clean[at : found.start()]), Markup("<mark>{}</mark>").format(found[0])]
        at = found.end()
    return Markup("").join([*out, Markup.escape(clean[at:])])


def moment(at_us: int | None) -> Markup:
    """Return a time as people read it, with its exact form for programs."""
    if at_us is None:
        return Markup("")
    when = datetime.fromtimestamp(at_us / 1_000_000, UTC)
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), when.strftime("%Y-%m-%d %H:%M:%S"))


def milliseconds(us: int | None) -> str:
    """Return a time in milliseconds."""
    return "" if us is None else f"{us / 1000:,.1f} ms"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Mapping[str, Any] = {
        "marked": marked,
        "moment": moment,
        "milliseconds": milliseconds,
        "printable": lambda text: printable(str(text or "")),
    }
    made.filters.update(filters)
    made.globals["who"] = _who
    return made


def _who(caller: Caller) -> str:
    return printable(f"{caller.identity}:{caller.subject}")


ENVIRONMENT = _environment()
