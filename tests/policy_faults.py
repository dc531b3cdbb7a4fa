"""What each file of tests/data/broken/policy-*.yaml is told: the full text, FILE standing for its name."""

from __future__ import annotations

# ruff: noqa: E501 - a message is one line
from pathlib import Path

import yaml

_OPENAI = yaml.safe_load((Path(__file__).parent.parent / "rules" / "dialects" / "openai.yaml").read_text())
ENDPOINTS = " or ".join(sorted(_OPENAI["endpoints"]))
DIALECTS = " or ".join(
    sorted(each.stem for each in (Path(__file__).parent.parent / "rules" / "dialects").glob("*.yaml"))
)

FAULTS: dict[str, list[str]] = {
    "action-later": [
        "FILE:21: inspection.prompt.pii: found 'approve'; accepted: allow or flag or tokenise or redact or block (approve is not in this version)",
        "FILE:22: inspection.response.pii: found 'approve'; accepted: allow or flag or redact or block (approve is not in this version)",
    ],
    "alias": [
        "FILE:5: connections[0].dialect: found an alias; accepted: the value, written out",
        "FILE:5: connections[0].dialect: found nothing; accepted: the name of a dialect",
    ],
    "body-limit": [
        "FILE:15: roles.engineer.allow[0].limits.max_output_tokens: found 0; accepted: a whole number of tokens above zero",
        "FILE:15: roles.engineer.allow[0].limits.body: found '1GiB'; accepted: at most the connection's limit of 8388608 bytes",
    ],
    "tokens": [
        "FILE:22: inspection.response.pii: found 'tokenise'; accepted: allow or flag or redact or block, since only prompts can be tokenised",
        "FILE:30: tokens.expire: found an unknown key; accepted: the keys idle, lifetime, values, bytes, all_bytes, restore",
        "FILE:29: tokens.restore.arguments: found an unknown key; accepted: the keys tool_arguments, urls",
        "FILE:26: tokens.values: found 0; accepted: a number of values above zero",
        "FILE:29: tokens.restore.urls: found 'maybe'; accepted: true or false",
        "FILE:24: tokens.idle: found '2h'; accepted: at most the lifetime of a session, 3600 s",
        "FILE:27: tokens.bytes: found '2MiB'; accepted: at most the 1048576 bytes of all sessions",
    ],
    "class-missing": [
        "FILE:21: inspection.response.pii: found nothing; accepted: allow or flag or redact or block",
    ],
    "class-unknown": [
        "FILE:21: inspection.prompt.injection: found an unknown class; accepted: the classes of the loaded packs: pii, secrets",
    ],
    "credential-in-clear": [
        "FILE:9: connections[0].upstream: found 'http://models.example.com'; accepted: an https address where a credential is attached, or http to loopback",
    ],
    "duplicate-key": [
        "FILE:3: version: found the key twice; accepted: each key once",
    ],
    "empty": [
        "FILE: the file: found nothing; accepted: a mapping",
    ],
    "group-unknown-identity": [
        "FILE:17: bindings[0].groups[0]: found 'crop:ml-eng'; accepted: a group of the identity corp",
    ],
    "group-without-identity": [
        "FILE:17: bindings[0].groups[0]: found 'ml-eng'; accepted: a group with the name of its identity, such as \"corp:ml-eng\"",
    ],
    "hosts": [
        *(
            f'FILE:23: inspection.hosts[{at}]: found {found}; accepted: a list of hosts such as docs.example.com, or "*.example.com" for all below it'
            for at, found in ((3, "7"), (0, "'https://docs.example.com'"), (1, "'docs.*.com'"), (2, "'*'"))
        ),
    ],
    "identity": [
        "FILE:6: identity[0].oidc.issuer: found 'http://login.example.com'; accepted: an https address without query (http only to loopback, with insecure_http: true)",
        "FILE:7: identity[0].oidc.audience: found an empty list; accepted: a text, or a list of texts",
        "FILE:8: identity[0].oidc.groups: found 'groups'; accepted: a JSONPath into the token's claims such as $.groups or $['https://example.com/groups']",
        "FILE:9: identity[0].oidc.algorithms[0]: found 'HS256'; accepted: ES256, ES384, ES512, Ed25519, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512",
        "FILE:10: identity[0].oidc.leeway: found '1h'; accepted: at most 300s",
        "FILE:11: identity[0].oidc.typ[0]: found 'logout+jwt'; accepted: the types of access tokens; this type is for another purpose",
        "FILE:12: identity[1].name: found a second identity named corp; accepted: each name once",
        "FILE:12: identity[1]: found oidc and static; accepted: exactly one of oidc and static",
        "FILE:15: identity[2].name: found 'tidegate'; accepted: a name other than none and tidegate",
        "FILE:16: identity[2].static.tokens: found nothing; accepted: the path of a tokens file, relative to this file",
    ],
    "held-longer-than-duration": [
        "FILE:23: limits.response.held: found held 1200s with a duration of 600s; accepted: a time of at most the duration",
    ],
    "idle-longer-than-duration": [
        "FILE:23: limits.response.idle: found idle 1200s with a duration of 600s; accepted: a time of at most the duration",
    ],
    "literal-beside-reference": [
        'FILE:11: connections[0].credential.value: found text beside the reference (not shown); accepted: an optional scheme word such as Bearer, then a reference: ${env:NAME}, ${file:/path}, ${systemd:NAME} or ${exec:["program", "argument"]}',
    ],
    "literal-credential": [
        'FILE:11: connections[0].credential.value: found a literal value (not shown); accepted: an optional scheme word such as Bearer, then a reference: ${env:NAME}, ${file:/path}, ${systemd:NAME} or ${exec:["program", "argument"]}',
    ],
    "missing": [
        "FILE:2: version: found nothing; accepted: 1",
        "FILE:2: identity: found nothing; accepted: a list of identities, or the word none to switch identity off",
        "FILE:2: connections: found nothing; accepted: a list of at least one connection",
        "FILE:2: inspection: found nothing; accepted: an action for each class of finding, under prompt and under response",
        "FILE:2: mode: found 'shadow'; accepted: enforce or observe",
        "FILE:3: unlisted: found 'maybe'; accepted: deny or pass",
    ],
    "no-files": [
        "FILE:2: packs: found 'nothing/*.yaml'; accepted: a path relative to this file that names at least one file",
        "FILE:2: dialects: found '/etc/*.yaml'; accepted: a path relative to this file that names at least one file",
    ],
    "none-with-groups": [
        "FILE:15: bindings[0].groups[0]: found 'corp:ml-eng'; accepted: the subject none:anyone, the only caller there is with identity: none",
    ],
    "not-yaml": [
        "FILE:6: the file: found expected the node content, but found '}'; accepted: YAML",
    ],
    "on-unknown": [
        "FILE:12: connections[0].on_unknown: found 'allow'; accepted: block or flag or pass",
    ],
    "recording": [
        "FILE:27: recording.originals: found 'sealed'; accepted: none, or sealed together with auditor: a public key as `tidegate evidence keygen` prints it",
        "FILE:24: recording.mode: found 'relaxed'; accepted: strict or best_effort",
        "FILE:25: recording.keep: found 'full'; accepted: redacted or none",
        "FILE:26: recording.path: found 7; accepted: the path of an SQLite file",
        "FILE:28: recording.checkpoints.every: found 'often'; accepted: a time such as 250ms, 120s, 10m or 1h",
        "FILE:28: recording.checkpoints.leaves: found 0; accepted: a number of events above zero",
        "FILE:28: recording.checkpoints.sink: found 2 of them; accepted: one of file, syslog, webhook, command",
        "FILE:29: recording.segments.size: found 'big'; accepted: a number of bytes such as 65536, 512KiB or 4MiB",
        "FILE:29: recording.segments.age: found 1; accepted: a time such as 250ms, 120s, 10m or 1h",
        "FILE:30: recording.retain: found 'long'; accepted: a time such as 250ms, 120s, 10m or 1h",
        "FILE:31: recording.ballast: found 0; accepted: a number of bytes such as 65536, 512KiB or 4MiB",
    ],
    "same-name": [
        "FILE:12: connections[1]: found a second connection named openai; accepted: each name once",
    ],
    "same-prefix": [
        "FILE:12: connections[1]: found the path /openai of the connection openai; accepted: a path of its own for each connection",
    ],
    "same-upstream": [
        "FILE:12: connections[1]: found the upstream and dialect of the connection openai; accepted: connections that differ in upstream or dialect, so that a proxied request belongs to one of them",
    ],
    "shadowed": [
        "FILE:15: roles.engineer.allow[0]: found a rule that roles.engineer.deny[0] denies; accepted: an allow rule of which the role's deny rules leave something",
    ],
    "units": [
        "FILE:23: limits.request.bytes: found '4 parsecs'; accepted: a number of bytes such as 65536, 512KiB or 4MiB",
        "FILE:23: limits.response.idle: found 120; accepted: a time such as 250ms, 120s, 10m or 1h",
        "FILE:23: limits.response.duration: found '0s'; accepted: a time such as 250ms, 120s, 10m or 1h",
    ],
    "unknown-connection": [
        "FILE:15: roles.engineer.allow[0].connections[0]: found 'opnai'; accepted: openai",
    ],
    "unknown-dialect": [
        f"FILE:8: connections[0].dialect: found 'opnai'; accepted: {DIALECTS}",
    ],
    "unknown-endpoint": [
        f"FILE:15: roles.engineer.allow[0].endpoints[1]: found 'messages'; accepted: {ENDPOINTS}",
    ],
    "unknown-key": [
        "FILE:3: mdoe: found an unknown key; accepted: the keys version, mode, unlisted, identity, connections, roles, bindings, packs, dialects, inspection, tokens, limits, recording, state",
        "FILE:11: connections[0].serve.port: found an unknown key; accepted: the keys path",
    ],
    "unknown-role": [
        "FILE:17: bindings[0].roles[0]: found 'enginer'; accepted: engineer",
    ],
    "upstream-query": [
        "FILE:9: connections[0].upstream: found an address with a user, query or fragment (not shown); accepted: an http or https address without user, query or fragment, such as https://api.openai.com",
    ],
    "upstream-user": [
        "FILE:9: connections[0].upstream: found an address with a user, query or fragment (not shown); accepted: an http or https address without user, query or fragment, such as https://api.openai.com",
    ],
    "vault": [
        'FILE:11: connections[0].credential.value: found a vault: reference, which this version does not have; accepted: an optional scheme word such as Bearer, then a reference: ${env:NAME}, ${file:/path}, ${systemd:NAME} or ${exec:["program", "argument"]}',
    ],
    "version": [
        "FILE:2: version: found 2; accepted: 1",
    ],
}
