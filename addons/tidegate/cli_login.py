"""``tidegate login`` and ``tidegate logout``: a person's own token, and the tokens of a static file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.cli_common import load_policy, policy_option, show_faults
from tidegate.login.provider import Client, Endpoints, Tokens, claims, discover, revoke
from tidegate.login.store import Login, Store, folder
from tidegate.login.web import LoginError

if TYPE_CHECKING:
    from tidegate.policy.policy import OidcIdentity

SCOPE = "openid offline_access"
CLIENT_ID = "tidegate-cli"
"""What this program calls itself where nobody says otherwise."""
VALID_FOR = 60.0
"""Seconds that a printed token is good for, at least: a request takes that long to be asked."""


@click.command()
@policy_option
@click.option("--print", "printing", is_flag=True, help="Only print a token that is good now; renew it if need be.")
@click.option("--refresh", is_flag=True, help="Renew the token now, even if it is good.")
@click.option("--json", "as_json", is_flag=True, help="Print the token and its end as a JSON object.")
@click.option("--quiet", is_flag=True, help="Say nothing beside the token and what goes wrong.")
@click.option("--valid-for", type=click.FloatRange(0, 86400), default=VALID_FOR, show_default=True, metavar="SECONDS",
              help="With --print: for how long the token has to be good.")  # fmt: skip
@click.option("--identity", default=None, help="The policy's identity to log in at; also the login's name here.")
@click.option("--issuer", default=None, metavar="URL", help="The provider, where no policy is at hand.")
@click.option("--client-id", default=None, help="As which client: the only one of allowed_clients, else tidegate-cli.")
@click.option("--client-secret-file", type=click.Path(path_type=Path), default=None,
              help="The secret of a client that must have one: a file of mode 0600.")  # fmt: skip
@click.option("--scope", default=SCOPE, show_default=True)
@click.option("--resource", default=None, help="The resource to ask for (RFC 8707).")
@click.option("--audience", default=None, help="The audience to ask for (Auth0).")
@click.option("--flow", type=click.Choice(["device", "browser"]), default=None,
              help="A code to enter anywhere, or this machine's browser.  [default: device]")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The loopback port of --flow browser.")
@click.option("--no-browser", is_flag=True, help="Show the address, do not open it.")
@click.option("--no-store", is_flag=True, help="Print the token and keep nothing.")
@click.option("--static", "static_name", default=None, metavar="NAME",
              help="Make a static token for this caller instead.")  # fmt: skip
@click.option("--group", "groups", multiple=True, default=("dev",), show_default=True,
              help="With --static: a group of the caller; repeat.")  # fmt: skip
@click.option("--days", type=click.IntRange(min=1), default=None, help="With --static: let it end after so many days.")
def login(policy_path: Path | None, static_name: str | None, **given: Any) -> None:
    """Get a token from the identity provider, keep it, and print or renew it for programs.

    \b
    tidegate login --issuer https://login.example.com --client-id my-client
    tidegate login --print            # for apiKeyHelper and the like: a token, or one line on stderr and not 0

    With --static it makes a token for a person or a program on this machine, shown once and kept only as a hash.
    """
    if static_name is not None:
        _static(policy_path, static_name, given["groups"], given["identity"], given["days"])
        return
    try:
        if given["printing"] or given["refresh"]:
            found = Store(folder()).valid(
                given["identity"], valid_for=given["valid_for"], force=given["refresh"], clock=time.time
            )
            if given["printing"] or given["as_json"]:
                _show(found, as_json=given["as_json"])
            elif not given["quiet"]:
                _tell(found)
            return
        _log_in(policy_path, given)
    except LoginError as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.option("--identity", default=None, help="Which login; by default the last one that was made.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
def logout(identity: str | None, *, everything: bool) -> None:
    """Forget a login, and tell the provider that its refresh token is not needed any more."""
    store = Store(folder())
    try:
        names = store.names() if everything else [identity]
        for name in names:
            found = store.load(name)
            if found is None:
                raise LoginError(f"Nobody is logged in here{'' if name is None else f' as {name}'}.")
            store.forget(found.name)
            click.echo(f"Logged out of {found.name}.{_taken_back(found)}", err=True)
    except LoginError as error:
        raise click.ClickException(str(error)) from None


def _taken_back(login: Login) -> str:
    if login.tokens.refresh is None:
        return ""
    if login.revocation_endpoint is None:
        return " Its provider takes no tokens back: the refresh token ends by itself."
    try:
        revoke(login.client, login.revocation_endpoint, login.tokens.refresh)
    except LoginError as error:
        return f" {error}"
    return ""


def _log_in(policy_path: Path | None, given: dict[str, Any]) -> None:
    name, client = _client(policy_path, given)
    endpoints = discover(client.issuer)
    flow = given["flow"] or ("device" if endpoints.device is not None else "browser")
    tokens = _by_device(client, endpoints, given) if flow == "device" else _by_browser(client, endpoints, given)
    found = Login(name, client, endpoints.token, endpoints.revocation, tokens)
    if not given["no_store"]:
        Store(folder()).keep(found)
    if given["no_store"] or given["as_json"]:
        _show(found, as_json=given["as_json"])
    if not given["quiet"]:
        _tell(found)


def _by_device(client: Client, endpoints: Endpoints, given: dict[str, Any]) -> Tokens:
    from tidegate.login import device

    if endpoints.device is None:
        raise LoginError(f"{client.issuer} has no device flow; try --flow browser.")
    code = device.begin(client, endpoints.device)
    click.echo(f"Open {code.address} in any browser and enter the code {code.user}", err=True)
    if code.complete is not None:
        click.echo(f"or open {code.complete}", err=True)
        _open(code.complete, given)
    return device.wait(client, endpoints.token, code, clock=time.time, sleep=time.sleep)


def _by_browser(client: Client, endpoints: Endpoints, given: dict[str, Any]) -> Tokens:
    from tidegate.login import browser

    def show(address: str) -> None:
        click.echo(f"Log in in your browser:\n{address}", err=True)
        _open(address, given)

    return browser.login(client, endpoints, port=given["port"], show=show, clock=time.time)


def _open(address: str, given: dict[str, Any]) -> None:
    import webbrowser

    if not given["no_browser"]:
        webbrowser.open(address)


def _client(policy_path: Path | None, given: dict[str, Any]) -> tuple[str, Client]:
    """Say where to log in: as the command line says, else as before, else as the policy says."""
    extra = {key: given[key] for key in ("resource", "audience") if given[key]}
    secret = given["client_secret_file"]
    secret = None if secret is None else str(secret.resolve())
    if given["issuer"] is not None:
        client_id = given["client_id"] or CLIENT_ID
        return given["identity"] or "default", Client(given["issuer"], client_id, given["scope"], secret, extra)
    before = Store(folder()).load(given["identity"])
    if before is not None and given["client_id"] is None and policy_path is None:
        return before.name, before.client
    identity = _identity(policy_path, given["identity"])
    client_id = given["client_id"] or _only(identity)
    return identity.name, Client(identity.issuer, client_id, given["scope"], secret, extra)


def _identity(policy_path: Path | None, name: str | None) -> OidcIdentity:
    from tidegate.policy.policy import OidcIdentity

    policy = load_policy(policy_path)
    known = [each for each in policy.identities or () if isinstance(each, OidcIdentity)]
    found = [each for each in known if name is None or each.name == name]
    if len(found) != 1:
        names = ", ".join(each.name for each in known)
        raise LoginError(
            f"{policy.file}: found {len(found)} OIDC identities to choose from; it has: {names or 'none'}. "
            "Give --identity, or --issuer and --client-id."
        )
    return found[0]


def _only(identity: OidcIdentity) -> str:
    clients = identity.allowed_clients or frozenset()
    if len(clients) != 1:
        raise LoginError(f"--client-id: found nothing; the policy's identity {identity.name} allows {len(clients)}.")
    return next(iter(clients))


def _show(login: Login, *, as_json: bool) -> None:
    tokens = login.tokens
    if not as_json:
        click.echo(tokens.access)
        return
    left = max(0, int(tokens.expires - time.time()))
    told = {
        "access_token": tokens.access,
        "token_type": "Bearer",
        "expires_in": left,
        "expires_at": int(tokens.expires),
    }
    click.echo(json.dumps({**told, "identity": login.name, "issuer": login.client.issuer}))


def _tell(login: Login) -> None:
    """Say who is logged in; what the token says of it is shown only if it can be."""
    subject = claims(login.tokens.access).get("sub")
    who = f" as {subject}" if isinstance(subject, str) and subject.isprintable() and len(subject) < 200 else ""
    end = time.strftime("%H:%M", time.localtime(login.tokens.expires))
    renewed = "; it is renewed when needed" if login.tokens.refresh is not None else " and cannot be renewed"
    click.echo(f"Logged in at {login.name}{who}. The token is good until {end}{renewed}.", err=True)


def _static(policy_path: Path | None, name: str, groups: Sequence[str], identity: str | None, days: int | None) -> None:
    import datetime

    from tidegate.identity.static import create
    from tidegate.policy.policy import PolicyError, StaticIdentity

    policy = load_policy(policy_path)
    found = [each for each in policy.identities or () if isinstance(each, StaticIdentity)]
    if identity is not None:
        found = [each for each in found if each.name == identity]
    if len(found) != 1:
        names = ", ".join(each.name for each in policy.identities or () if isinstance(each, StaticIdentity))
        raise click.ClickException(
            f"{policy.file}: found {len(found)} static identities to choose from; it has: {names or 'none'}."
        )
    expires = None if days is None else datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    try:
        token = create(Path(found[0].tokens), name, tuple(groups), expires)
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None
    click.echo(token)
    click.echo(f"Token of {found[0].name}:{name}, groups {', '.join(groups)}. It is not shown again.", err=True)
