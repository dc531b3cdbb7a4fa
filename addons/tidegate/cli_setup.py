"""``tidegate setup``: point a client at the gate, show what changes, and take it back."""

from __future__ import annotations

import difflib
import os
import shutil
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from tidegate.login.store import folder
from tidegate.setup.clients import NAMES, Plan, Wish, plan
from tidegate.setup.editing import NotEditable, without_secrets
from tidegate.setup.files import Change, Kept, SetupError, read


@click.command()
@click.argument("client", type=click.Choice(NAMES))
@click.option("--gateway", default="http://127.0.0.1:8080", show_default=True, metavar="URL", help="Where the gate is.")
@click.option("--mode", type=click.Choice(["reverse", "explicit"]), default="reverse", show_default=True,
              help="As a base URL, or as a proxy.")  # fmt: skip
@click.option("--proxy-token", is_flag=True, help="With --mode explicit: show the token to the proxy itself.")
@click.option("--openai-path", default="/openai", show_default=True, help="The path of the policy's OpenAI connection.")
@click.option("--anthropic-path", default="/anthropic", show_default=True, help="That of its Anthropic connection.")
@click.option("--identity", default=None, help="The login to take tokens from (tidegate login --identity).")
@click.option("--ca", type=click.Path(path_type=Path), default=Path("~/.mitmproxy/mitmproxy-ca-cert.pem"),
              show_default=True, help="The gate's authority, for --mode explicit and https.")  # fmt: skip
@click.option("--print", "printing", is_flag=True, help="Print the settings and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--undo", is_flag=True, help="Put back the files as they were.")
@click.option("--force", is_flag=True, help="With --undo: even where a file was changed since.")
def setup(client: str, **given: Any) -> None:
    """Point CLIENT at the gate: shows what changes in its settings, asks, writes, and keeps a copy for --undo.

    No token is written anywhere: clients call `tidegate login --print` for one.
    """
    kept = Kept(folder() / "setup" / client)
    try:
        if given["undo"]:
            _undo(kept, client, force=given["force"])
            return
        wish = _wish(client, given)
        planned = plan(client, wish)
        if given["printing"] or planned.file is None:
            click.echo(planned.shown(), nl=False)
            _notes(planned)
            return
        _write(kept, client, planned, _changes(kept, client, planned, wish), yes=given["yes"])
    except SetupError as error:
        raise click.ClickException(str(error)) from None


def _write(kept: Kept, client: str, planned: Plan, changes: list[Change], *, yes: bool) -> None:
    if not changes:
        click.echo(f"{client} is set up already; nothing to change.")
        _notes(planned)
        return
    for each in changes:
        click.echo(_difference(each))
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException("Nothing was written: nobody is there to ask. Give --yes, or --print.")
        click.confirm("Write this?", abort=True)
    kept.apply(changes)
    click.echo(f"Written. tidegate setup {client} --undo puts back what was there.")
    _notes(planned)


def _undo(kept: Kept, client: str, *, force: bool) -> None:
    restored = kept.undo(force=force)
    if not restored:
        click.echo(f"tidegate has written nothing for {client}.")
    for each in restored:
        click.echo(f"{each}: as it was.")


def _wish(client: str, given: dict[str, Any]) -> Wish:
    gateway = given["gateway"].rstrip("/")
    try:
        parts = urlsplit(gateway)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.path and parts.username is None
        _ = parts.port
    except ValueError:
        good = False
    if not good or not gateway.isprintable() or "?" in gateway or "#" in gateway:
        raise click.BadParameter(
            "found an address with more than that; accepted: scheme, host and port, as in http://127.0.0.1:8080",
            param_hint="--gateway",
        )
    explicit = given["mode"] == "explicit"
    if given["proxy_token"] and not explicit:
        raise click.BadParameter("accepted: with --mode explicit alone", param_hint="--proxy-token")
    environment, home = os.environ, Path.home()
    own = folder()
    return Wish(
        gateway=gateway,
        explicit=explicit,
        proxy_token=given["proxy_token"],
        helper=(_program(), "login", "--print", *(("--identity", given["identity"]) if given["identity"] else ())),
        openai_path=_path(given["openai_path"], "--openai-path"),
        anthropic_path=_path(given["anthropic_path"], "--anthropic-path"),
        ca=given["ca"].expanduser().absolute(),
        bundle=own / f"{client}-ca.pem",
        claude_folder=Path(environment.get("CLAUDE_CONFIG_DIR") or home / ".claude"),
        codex_folder=Path(environment.get("CODEX_HOME") or home / ".codex"),
        own_folder=own,
    )


def _path(text: str, option: str) -> str:
    path = "/" + text.strip("/")
    if not path.isascii() or not path.isprintable() or set(path) & set(" ?#\"'\\$`"):
        raise click.BadParameter("accepted: a path such as /openai", param_hint=option)
    return path


def _program() -> str:
    """Return how clients call this program: its full path, since they may have another PATH."""
    found = Path(sys.argv[0])
    if found.name == "tidegate" and found.is_file():
        return str(found.absolute())
    return shutil.which("tidegate") or "tidegate"


def _changes(kept: Kept, client: str, planned: Plan, wish: Wish) -> list[Change]:
    assert planned.file is not None
    found = []
    if planned.trust:
        found.append(_change(wish.bundle, _bundle(wish.ca)))
    path = planned.file.resolve()  # a link stays one: what it leads to is changed
    before = read(path)
    try:
        after = planned.edited((kept.base(path, before) or b"").decode("utf-8"))
    except (UnicodeDecodeError, NotEditable) as error:
        why = error if isinstance(error, NotEditable) else "it is not UTF-8"
        raise SetupError(
            f"{path}: cannot be changed without harm: {why}. See tidegate setup {client} --print."
        ) from None
    found.append(Change(path, before, after.encode("utf-8")))
    return [each for each in found if each.before != each.after]


def _change(path: Path, after: bytes) -> Change:
    path = path.resolve()
    return Change(path, read(path), after)


def _bundle(ca: Path) -> bytes:
    """Return everything that this machine trusts, and the gate's authority with it."""
    own = read(ca)
    if own is None or b"BEGIN CERTIFICATE" not in own or b"PRIVATE KEY" in own:
        raise SetupError(f"--ca {ca}: found no certificate; the gate makes it at its first start (--confdir).")
    system = Path(ssl.get_default_verify_paths().openssl_cafile)
    try:
        import certifi

        trusted = read(Path(certifi.where()))
    except ImportError:
        trusted = None
    trusted = trusted or read(system) or b""
    return trusted.rstrip() + b"\n\n" + own.strip() + b"\n"


def _difference(change: Change) -> str:
    """Show what changes, without the values of other secrets that stand beside it."""
    if change.path.suffix == ".pem":
        return f"{change.path}: what this machine trusts, and the gate's authority"
    name = str(change.path)
    before = (change.before or b"").decode("utf-8").splitlines()
    lines = difflib.unified_diff(
        before, change.after.decode("utf-8").splitlines(), name if change.before is not None else "/dev/null", name,
        lineterm="", n=1,
    )  # fmt: skip
    return "\n".join(without_secrets(each) for each in lines)


def _notes(planned: Plan) -> None:
    for each in planned.notes:
        click.echo(each, err=True)
