"""What each client is told: file, settings and the names that its documentation gives them. Pure.

The pages that say so are named in docs/clients.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tidegate.setup.editing import Settings, edit_json, edit_toml, toml

NAMES = ("openai", "anthropic", "claude-code", "codex", "cursor", "curl", "env")
PLACEHOLDER = "tidegate"
TTL_MS = 300_000
VALID_FOR = 330
"""Claude Code asks its helper for a key every five minutes; the key is good for half a minute more."""
CODEX_TIMEOUT_MS = 60_000
PROVIDER = "tidegate"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants. ``helper`` is the command that prints a token, ``home`` the folders of this machine.

    ``explicit``: as a proxy, which is shown the token itself with ``proxy_token``; else as a base URL. ``paths`` are
    those of the policy's connections. ``ca`` is the gate's authority, ``bundle`` the file of all that is trusted.
    """

    gateway: str
    explicit: bool
    proxy_token: bool
    helper: tuple[str, ...]
    openai_path: str
    anthropic_path: str
    ca: Path
    bundle: Path
    claude_folder: Path
    codex_folder: Path
    own_folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be in a file, as settings or as its whole text, and what a person should know beside it.

    Without a file it is only printed. ``trust``: the bundle is needed as well.
    """

    file: Path | None
    settings: Settings = field(default_factory=dict)
    text: str | None = None
    notes: tuple[str, ...] = ()
    trust: bool = False

    def edited(self, before: str) -> str:
        """Return the file's new text. Raises ``NotEditable``."""
        if self.text is not None:
            return self.text
        assert self.file is not None
        return edit_toml(before, self.settings) if self.file.suffix == ".toml" else edit_json(before, self.settings)

    def shown(self) -> str:
        """Return what there is to say where nothing is written."""
        if self.text is not None:
            return self.text
        assert self.file is not None
        return toml(self.settings) if self.file.suffix == ".toml" else edit_json("", self.settings)


def plan(client: str, wish: Wish) -> Plan:
    """Say what a client is told."""
    if client == "claude-code":
        return _claude_code(wish)
    if client == "codex":
        return _codex(wish)
    if client == "cursor":
        return _cursor(wish)
    return _shell(client, wish)


def _trusts(wish: Wish) -> bool:
    """Whether the client meets certificates of the gate's own authority."""
    return wish.explicit or urlsplit(wish.gateway).scheme == "https"


def _openai_url(wish: Wish) -> str:
    return wish.gateway + wish.openai_path + "/v1"


def _anthropic_url(wish: Wish) -> str:
    return wish.gateway + wish.anthropic_path


def _claude_code(wish: Wish) -> Plan:
    environment = {"CLAUDE_CODE_API_KEY_HELPER_TTL_MS": str(TTL_MS)}
    if wish.explicit:
        environment["HTTPS_PROXY"] = wish.gateway
    else:
        environment["ANTHROPIC_BASE_URL"] = _anthropic_url(wish)
    if _trusts(wish):
        environment["NODE_EXTRA_CA_CERTS"] = str(wish.ca)
    helper = shlex.join((*wish.helper, "--valid-for", str(VALID_FOR)))
    notes = ["ANTHROPIC_API_KEY and ANTHROPIC_AUTH_TOKEN, where they are set, win over the helper: unset them."]
    if wish.proxy_token:
        notes.append("--proxy-token is left out: settings.json cannot ask for a fresh token in an address.")
    return Plan(wish.claude_folder / "settings.json", {"apiKeyHelper": helper, "env": environment}, notes=tuple(notes))


def _codex(wish: Wish) -> Plan:
    auth = {"command": wish.helper[0], "args": list(wish.helper[1:]), "timeout_ms": CODEX_TIMEOUT_MS}
    provider = {
        "name": "tidegate",
        "base_url": "https://api.openai.com/v1" if wish.explicit else _openai_url(wish),
        "wire_api": "responses",
        "auth": {**auth, "refresh_interval_ms": TTL_MS},
    }
    notes = []
    if _trusts(wish):
        notes.append("Codex takes proxy and authority from its environment: see tidegate setup env --mode explicit.")
    settings = {"model_provider": PROVIDER, "model_providers": {PROVIDER: provider}}
    return Plan(wish.codex_folder / "config.toml", settings, notes=tuple(notes), trust=_trusts(wish))


def _cursor(wish: Wish) -> Plan:
    if wish.explicit:
        text = (
            "Cursor's own requests go to Cursor's servers, in a protocol that no dialect describes:\n"
            "as a proxy the gate refuses them. Use a base URL: tidegate setup cursor --mode reverse\n"
        )
        return Plan(None, text=text)
    text = (
        "Cursor keeps these settings in a database of its own, so enter them yourself\n"
        "(Cursor Settings, Models, API Keys):\n"
        f"  Override OpenAI Base URL   {_openai_url(wish)}\n"
        f"  OpenAI API Key             what `{shlex.join(wish.helper)}` prints; enter it anew when it ends\n"
        "Cursor's servers send the requests, not your machine: the gate must be reachable from the\n"
        "internet, over https with a certificate that everybody trusts.\n"
    )
    return Plan(None, text=text)


def _shell(client: str, wish: Wish) -> Plan:
    """Make a file for the shell: what it exports, and how to use it."""
    file = wish.own_folder / f"{client}.sh"
    lines = [f"# Written by tidegate setup {client}. Use it with:  . {shlex.quote(str(file))}"]
    token = f'"$({shlex.join(wish.helper)})"'
    keyed = f"{PLACEHOLDER}  # the proxy is shown the token" if wish.explicit and wish.proxy_token else token
    lines += [f"export {name}={value}" for name, value in _variables(client, wish).items()]
    lines += [f"export {name}={keyed}" for name in _keys(client)]
    if client in ("anthropic", "env"):
        lines.append("unset ANTHROPIC_AUTH_TOKEN  # two different tokens in one request are refused")
    if client == "curl":
        lines.append("# " + _curl(wish))
    notes = ("The token is asked for when the file is read; read it again when the token has ended.",)
    return Plan(file, text="\n".join(lines) + "\n", notes=notes, trust=_trusts(wish))


def _keys(client: str) -> tuple[str, ...]:
    known = {"openai": ("OPENAI_API_KEY",), "anthropic": ("ANTHROPIC_API_KEY",), "curl": ("TIDEGATE_TOKEN",)}
    return known.get(client, ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"))


def _variables(client: str, wish: Wish) -> Mapping[str, str]:
    """Return the variables without those for keys; values are written for the shell."""
    found: dict[str, str] = {}
    if wish.explicit:
        address = shlex.quote(wish.gateway)
        if wish.proxy_token:
            scheme, _, rest = wish.gateway.partition("://")
            address = f'"{scheme}://{PLACEHOLDER}:$({shlex.join(wish.helper)})@{rest}"'
        found["HTTPS_PROXY"] = address
    else:
        if client in ("openai", "env"):
            found["OPENAI_BASE_URL"] = shlex.quote(_openai_url(wish))
        if client in ("anthropic", "env"):
            found["ANTHROPIC_BASE_URL"] = shlex.quote(_anthropic_url(wish))
    if _trusts(wish):
        names = ("CURL_CA_BUNDLE",) if client == "curl" else ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        found |= dict.fromkeys(names, shlex.quote(str(wish.bundle)))
        if client != "curl":
            found["NODE_EXTRA_CA_CERTS"] = shlex.quote(str(wish.ca))
    if wish.explicit and client != "curl":
        found["NODE_USE_ENV_PROXY"] = "1"
    return found


def _curl(wish: Wish) -> str:
    where = "https://api.openai.com/v1" if wish.explicit else _openai_url(wish)
    return f'curl -N {shlex.quote(where + "/models")} -H "authorization: Bearer $TIDEGATE_TOKEN"'
