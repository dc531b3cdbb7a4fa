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
        "FILE:22: inspection.response.pii: found 'approve'; accepted: allow or flag or redact or block, since only a request can wait for an approval",
        "FILE:21: inspection.prompt.pii: found approve, and 0 entries for it; accepted: approve, with one entry under approvals that is called pii or names it under when.classes",
    ],
    "sign-in": [
        "FILE:8: admin.sign_in[0].identity: found 'static'; accepted: the name of an oidc identity of this policy (corp)",
        "FILE:8: admin.sign_in[0].parameters: found state; accepted: parameters other than client_id, code_challenge, code_challenge_method, redirect_uri, response_type, scope, state",
        "FILE:8: admin.sign_in[0].client_secret: found a literal value (not shown); accepted: a reference, such as ${file:/run/secrets/gate}",
        "FILE:9: admin.sign_in[1].client_id: found nothing; accepted: the client id by which the provider knows the pages",
        "FILE:10: admin.sign_in[2].identity: found a second entry for corp; accepted: each identity once",
    ],
    "admin": [
        "FILE:7: identity[1].saml.certificate: found an unknown key; accepted: the keys metadata, issuer, entity_id, groups, subject, leeway",
        "FILE:7: identity[1].saml.leeway: found '1h'; accepted: at most 300s",
        "FILE:12: admin.port: found an unknown key; accepted: the keys url, hosts, tokens, sign_in",
        "FILE:9: admin.url: found 'http://gate.example.com/admin'; accepted: an https address without path (http only to loopback), such as https://gate.example.com:9443",
        "FILE:11: admin.tokens.lifetime: found '2h'; accepted: at most 60m",
        "FILE:11: admin.tokens.rotate: found '1h'; accepted: at least 2h",
        "FILE:10: admin.hosts[0]: found '*.example.com'; accepted: a list of host names such as gate.example.com",
        "FILE:24: roles.operator.admin[1]: found 'shutdown'; accepted: overview or exchanges or metrics or reload or revoke",
        "FILE:7: identity[1].saml.metadata: found 'adfs.xml': No such file or directory; accepted: a SAML 2.0 metadata file with one identity provider, its HTTP-Redirect address and its signing certificates",
    ],
    "alias": [
        "FILE:5: connections[0].dialect: found an alias; accepted: the value, written out",
        "FILE:5: connections[0].dialect: found nothing; accepted: the name of a dialect",
    ],
    "approvals": [
        "FILE:35: approvals.pending.per_caller: found 9; accepted: at most the 5 in all",
        "FILE:27: approvals.pii.every_group: found 'maybe'; accepted: true or false",
        "FILE:28: approvals.pii.decide_within: found '8d'; accepted: at most 7d",
        "FILE:29: approvals.pii.reason: found 'always'; accepted: required or optional",
        "FILE:30: approvals.pii.when.hours.outside: found '8-18'; accepted: hours in which nobody is asked, such as 08:00-18:00",
        "FILE:30: approvals.pii.when.hours.days[0]: found 'monday'; accepted: mon or tue or wed or thu or fri or sat or sun",
        "FILE:30: approvals.pii.when.hours.zone: found 'Mars/Olympus'; accepted: a time zone such as Europe/Berlin or UTC",
        "FILE:34: approvals.idle.quorum: found 1; accepted: at least 2, one person for each group",
        "FILE:25: approvals.pii.approvers[0]: found 'stewards'; accepted: a group with the name of its identity, such as \"corp:stewards\"",
        "FILE:24: approvals.owners: found 'robot'; accepted: a subject with the name of its identity, such as \"corp:robot\"",
        "FILE:15: roles.engineer.allow[0].approve: found 'nobody'; accepted: idle or pii",
        "FILE:30: approvals.pii.when.classes[1]: found 'secrets'; accepted: a class whose action under inspection.prompt is approve",
        "FILE:30: approvals.pii.when.rules[0]: found 'none.such'; accepted: the id of a rule that is loaded",
        "FILE:32: approvals.idle: found no trigger; accepted: something that needs it: when, a class of its name, or an allow rule's approve",
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
    "budgets": [
        "FILE:25: budgets.people.speed: found an unknown key; accepted: the keys per, requests, tokens, spend, concurrent, answer",
        "FILE:21: budgets.people.requests: found 100; accepted: an amount in a window, such as 100/1m, with a window from 1s to 366d",
        "FILE:22: budgets.people.tokens: found '1.5/1h'; accepted: an amount in a window, such as 200000/1h, with a window from 1s to 366d",
        "FILE:23: budgets.people.spend: found '50/500d'; accepted: an amount in a window, such as 50/1d, with a window from 1s to 366d",
        "FILE:20: budgets.people.per[1]: found 'person'; accepted: everyone, or one or several of caller, group, role, connection, model",
        "FILE:24: budgets.people.concurrent: found 0; accepted: a whole number of requests above zero",
        "FILE:26: budgets.nothing: found no limit; accepted: at least one of requests, tokens, spend, concurrent",
        "FILE:26: budgets.nothing.per: found 'everybody'; accepted: everyone, or one or several of caller, group, role, connection, model",
        "FILE:15: roles.engineer.allow[0].limits.budgets[1]: found 'peoples'; accepted: nothing or people",
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
        "FILE:12: identity[1]: found oidc and static; accepted: exactly one of oidc, static, saml, source and certificate",
        "FILE:15: identity[2].name: found 'tidegate'; accepted: a name other than none and tidegate",
        "FILE:16: identity[2].static.tokens: found nothing; accepted: the path of a tokens file, relative to this file",
    ],
    "entrances": [
        "FILE:9: identity[1].certificate.subject: found 'serial'; accepted: cn or dns or uri or email",
        "FILE:10: identity[1].certificate.groups: found 'dept'; accepted: the word ou, or a list of groups without the identity's name",
        "FILE:16: identity[4].source.addresses[0]: found '10.2.0.1/16'; accepted: a list of addresses or networks such as 10.2.0.0/16 or fd00:1::/64, at most as wide as a /8 (IPv6: a /32)",
        "FILE:16: identity[4].source.addresses[1]: found '0.0.0.0/0'; accepted: a list of addresses or networks such as 10.2.0.0/16 or fd00:1::/64, at most as wide as a /8 (IPv6: a /32)",
        "FILE:16: identity[4].source.addresses[2]: found '2001:db8::/31'; accepted: a list of addresses or networks such as 10.2.0.0/16 or fd00:1::/64, at most as wide as a /8 (IPv6: a /32)",
        "FILE:17: identity[4].source.subject: found 'tidegate:x'; accepted: a name for the caller; without it each address is a caller of its own",
        "FILE:18: identity[5]: found the network 10.2.0.0/16 a second time (identity net); accepted: each network once",
        "FILE:21: proxy.authentication: found 'always'; accepted: required or optional or off",
        "FILE:8: identity[1].certificate.ca: found 'nowhere.pem': No such file or directory; accepted: a file that can be read",
        "FILE:12: identity[2].certificate.ca: found 'policy-entrances.yaml', something else; accepted: a file of certificates (PEM), each that of an authority",
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
    "none-with-proxy": [
        "FILE:4: proxy.authentication: found 'required'; accepted: optional or off with identity: none, under which nobody can be told from anybody",
    ],
    "none-with-groups": [
        "FILE:15: bindings[0].groups[0]: found 'corp:ml-eng'; accepted: the subject none:anyone, the only caller there is with identity: none",
    ],
    "not-yaml": [
        "FILE:6: the file: found expected the node content, but found '}'; accepted: YAML",
    ],
    "oidc": [
        "FILE:13: identity[0].oidc.on_overage: found 'static'; accepted: static together with overage_groups, a list of groups for each subject",
        "FILE:11: identity[0].oidc.group_split: found 'tabs'; accepted: a key that goes with groups",
        "FILE:12: identity[0].oidc.group_map: found a mapping; accepted: a key that goes with groups",
        "FILE:13: identity[0].oidc.on_overage: found 'static'; accepted: a key that goes with groups",
        "FILE:8: identity[0].oidc.claims.tid: found an empty list; accepted: a text or a whole number, or a list of them",
        "FILE:8: identity[0].oidc.claims.hd[0]: found true; accepted: a text or a whole number, or a list of them",
        "FILE:8: identity[0].oidc.claims.$[: found '$['; accepted: the name of a claim, or a JSONPath such as $.cnf.kid",
        "FILE:9: identity[0].oidc.carry[0]: found '$.['; accepted: the name of a claim, or a JSONPath such as $.cnf.kid",
        "FILE:10: identity[0].oidc.max_age: found 'soon'; accepted: a time such as 250ms, 120s, 10m or 1h",
        "FILE:11: identity[0].oidc.group_split: found 'tabs'; accepted: spaces or commas",
        "FILE:12: identity[0].oidc.group_map: found an empty mapping; accepted: at least one group and the name it has here",
        "FILE:14: identity[0].oidc.introspection.mode: found an unknown key; accepted: the keys client_id, client_secret, endpoint, prefix, cache",
        "FILE:14: identity[0].oidc.introspection.cache: found '1h'; accepted: at most 300s",
        "FILE:14: identity[0].oidc.introspection.client_secret: found a literal value (not shown); accepted: a reference, such as ${file:/run/secrets/gate}",
        "FILE:15: identity[0].oidc.bound: found 'never'; accepted: optional or required",
        "FILE:16: identity[0].oidc.addresses[0]: found 'gate.example.com'; accepted: a list of addresses such as https://gate.example.com, without a path",
        "FILE:16: identity[0].oidc.addresses[1]: found 'https://gate.example.com/openai'; accepted: a list of addresses such as https://gate.example.com, without a path",
        "FILE:23: identity[1].oidc.overage_groups.alice: found an empty list; accepted: a list of groups",
        "FILE:23: identity[1].oidc.overage_groups: found a mapping; accepted: a key that goes with on_overage: static",
        "FILE:24: identity[1].oidc.introspection.client_secret: found text beside the reference (not shown); accepted: a reference, such as ${file:/run/secrets/gate}",
        "FILE:24: identity[1].oidc.introspection.endpoint: found 'http://a.example.com/'; accepted: an https address without query (http only to loopback, with insecure_http: true)",
        "FILE:4: identity: found corp and other with the same prefix; accepted: identities with introspection whose prefixes differ, so that a token is shown to its provider alone",
        "FILE:4: identity[0].oidc.ca: found 'missing.pem'; accepted: the path of a PEM file, relative to this file",
    ],
    "on-unknown": [
        "FILE:12: connections[0].on_unknown: found 'allow'; accepted: block or flag or pass",
        "FILE:13: connections[0].encoded_runs: found '9KiB'; accepted: a size from 64B to 4KiB, or none",
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
    "saml-without-url": [
        "FILE:9: admin.url: found nothing, although the identity adfs signs in through it; accepted: an https address without path (http only to loopback), such as https://gate.example.com:9443",
        "FILE:7: identity[1].saml.metadata: found 'adfs.xml': No such file or directory; accepted: a SAML 2.0 metadata file with one identity provider, its HTTP-Redirect address and its signing certificates",
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
        "FILE:3: mdoe: found an unknown key; accepted: the keys version, mode, unlisted, identity, proxy, connections, roles, bindings, budgets, prices, packs, dialects, inspection, approvals, tokens, limits, recording, state, admin",
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
