"""From a policy file to a ``Policy``: reads it, its packs and its dialects, and reports every fault at once.

This is the shell of the package: only here are files read. ``load`` either returns a whole policy or raises, so whoever
reloads keeps the policy in force until a new one is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Dialect
from tidegate.inspection import urls
from tidegate.inspection.detectors import DetectorError, plugged
from tidegate.inspection.engine import CompiledCache, Engine, RuleError, build
from tidegate.inspection.rules import Rule, check_examples, parse_pack
from tidegate.limits.prices import Prices
from tidegate.model import Action, Direction, Fault
from tidegate.policy.budgets import parse_prices
from tidegate.policy.certificate_files import open_authorities
from tidegate.policy.coded import Coded, open_all, scored_whole_only, whole_only
from tidegate.policy.descriptor_files import open_descriptors
from tidegate.policy.keeping import Sink, SinkKind
from tidegate.policy.linking import Parts, link
from tidegate.policy.memory import remembering
from tidegate.policy.ner_files import open_ner
from tidegate.policy.policy import (
    Admin,
    CertificateIdentity,
    Identity,
    OidcIdentity,
    Policy,
    PolicyError,
    Recording,
    SamlIdentity,
    State,
    StaticIdentity,
)
from tidegate.policy.reader import Reader
from tidegate.policy.routing import routes
from tidegate.policy.saml_files import check_metadata
from tidegate.policy.schema import STATE_NAME, Document, read
from tidegate.policy.source import parse

FILE_BYTES = 4 * 1024 * 1024  # the largest pack shipped is well under 1 MB; more is a mistake in a glob


@dataclass(frozen=True, slots=True)
class _Text:
    """A file that was read: its name for messages, its name below the policy's folder, its text."""

    file: str
    name: str
    text: str


def load(path: Path, *, engine_cache: CompiledCache | None = None) -> Policy:
    """Load a policy with its packs and dialects.

    Raises ``PolicyError`` with every fault of every file at once; nothing is half loaded.
    """
    reader = Reader(str(path))
    policy_text, document, faults = _document(path, reader)
    packs = _files(path, "packs", document.packs, reader, document)
    dialect_texts = _files(path, "dialects", document.dialects, reader, document)
    below: list[Fault] = []
    packs += _detectors(below)
    coded = open_all(str(path), document.detectors, document.allow_files, path.parent)
    thresholds = {cls: value for cls, (value, _) in document.thresholds.items()}
    with remembering(engine_cache, (each.text for each in (*packs, *dialect_texts))):
        dialects = _dialects(dialect_texts, below)
        rules, engine = _rules(packs, below, engine_cache, coded, thresholds)
    if not below:
        coded.check_rules(rules, document.allow_files, path.parent)
    coded.checks.update(urls.checks(rules, document.hosts))
    ner = open_ner(str(path), document.ner, path.parent)
    below += [*coded.faults, *ner.faults]
    described = open_descriptors(reader, document.connections, dialects, path.parent)
    rules = (*rules, *coded.coded_rules, *ner.rules)
    state = _state(reader, document, path.parent)
    check_metadata(reader, document.identities, path.parent)
    absolute = _identities(reader, document, path.parent)
    identities, authorities = open_authorities(reader, document.identities, absolute)
    prices, price_text = _prices(document, path.parent, below)
    linked = link(reader, document, Parts(dialects, rules, whole=bool(packs and dialect_texts and not below)))
    faults += [*reader.faults, *below]
    if faults or engine is None:
        raise PolicyError(tuple(faults))
    acts = _acts(linked.actions)
    firsts = engine.scorer.firsts if engine.scorer is not None else ()
    return Policy(
        file=str(path),
        sha256=_digest(
            (policy_text, *packs, *dialect_texts, *price_text),
            [*coded.files, *ner.files, *described.files, *authorities],
        ),
        mode=document.mode,
        unlisted=document.unlisted,
        identities=identities,
        proxy=document.proxy,
        connections=linked.connections,
        routes=routes(linked.connections.values()),
        permissions=linked.permissions,
        dialects=dialects,
        engine=coded.extend(engine),
        actions=linked.actions,
        decisions=linked.decisions,
        recording=_recording(document, path.parent),
        state=state,
        admin=document.admin,
        warnings=(
            *linked.warnings,
            *coded.warnings,
            *whole_only(coded.coded_rules, acts),
            *scored_whole_only(firsts, acts),
            *ner.warnings(linked.actions),
        ),
        ner=ner.wanted(linked.actions if linked.inspections is None else linked.inspections.widest()),
        descriptors=described.sets,
        approvals=linked.approvals,
        tokens=document.tokens if Action.TOKENISE in linked.decisions[Direction.PROMPT].values() else None,
        inspections=linked.inspections,
        budgets=document.budgets.budgets,
        prices=prices,
    )


def load_packs(paths: Sequence[Path], *, engine_cache: CompiledCache | None = None, detectors: bool = True) -> Engine:
    """Load packs without a policy, and the installed detectors with them; every example of every rule is run.

    Raises ``PolicyError`` with every fault of every file at once.
    """
    faults: list[Fault] = []
    texts = [text for text in (_read(each, each.parent, faults) for each in paths) if text is not None]
    texts += _detectors(faults) if detectors else ()
    with remembering(engine_cache, (each.text for each in texts)):
        _, engine = _rules(texts, faults, engine_cache, Coded())
    if faults or engine is None:
        raise PolicyError(tuple(faults))
    return engine


def recording_of(path: Path) -> Path:
    """Return where a policy records, without loading its packs. Raises ``PolicyError``."""
    return Path(_absolute(path.parent, read_document(path).recording.path))


def read_document(path: Path) -> Document:
    """Return a policy's file as it is written, without loading its packs. Raises ``PolicyError``."""
    reader = Reader(str(path))
    _, document, faults = _document(path, reader)
    if faults or reader.faults:
        raise PolicyError((*reader.faults, *faults))
    return document


def state_of(path: Path) -> tuple[Path, tuple[Identity, ...] | None]:
    """Return where a policy's control store is, and its identities; packs are not loaded. Raises ``PolicyError``."""
    reader = Reader(str(path))
    _, document, faults = _document(path, reader)
    state = _state(reader, document, path.parent)
    if faults or reader.faults:
        raise PolicyError((*reader.faults, *faults))
    return Path(state.path), document.identities.all


@dataclass(frozen=True, slots=True)
class People:
    """What of a policy matters to people who decide: who they can be, our own tokens, and where approvals are kept."""

    identities: tuple[Identity, ...] | None
    state: State
    admin: Admin


def people_of(path: Path) -> People:
    """Return who may decide and where, without loading the policy's packs. Raises ``PolicyError``."""
    reader = Reader(str(path))
    _, document, faults = _document(path, reader)
    state, identities = _state(reader, document, path.parent), _identities(reader, document, path.parent)
    if faults or reader.faults:
        raise PolicyError((*reader.faults, *faults))
    return People(identities, state, document.admin)


def _recording(document: Document, folder: Path) -> Recording:
    said = document.recording
    keeping = said.keeping
    if keeping.sink is not None and keeping.sink.kind is SinkKind.FILE:
        keeping = replace(keeping, sink=Sink(SinkKind.FILE, (_absolute(folder, keeping.sink.words[0]),)))
    modes = {each.name: each.recording for each in document.connections if each.recording is not None}
    return Recording(said.mode, said.keep, _absolute(folder, said.path), modes, keeping)


def _document(path: Path, reader: Reader) -> tuple[_Text, Document, list[Fault]]:
    """Read the policy file itself; raises ``PolicyError`` where there is nothing to go on with."""
    faults: list[Fault] = []
    text = _read(path, path.parent, faults)
    if text is None:
        raise PolicyError(tuple(faults))
    root, yaml_faults = parse(text.text, str(path))
    faults.extend(yaml_faults)
    if root is None:
        raise PolicyError(tuple(faults))
    return text, read(reader, root), faults


def _read(path: Path, folder: Path, faults: list[Fault]) -> _Text | None:
    """Read one file; what cannot be read is a fault."""
    try:
        data = path.read_bytes()
        if len(data) > FILE_BYTES:
            raise ValueError
        text = data.decode("utf-8")
    except OSError as error:
        faults.append(Fault(str(path), "the file", error.strerror or "an error", "a file that can be read"))
    except ValueError:
        faults.append(Fault(str(path), "the file", "bytes that are not UTF-8, or too many", "UTF-8 text up to 4 MiB"))
    else:
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        return _Text(str(path), name, text)
    return None


def _files(path: Path, key: str, globs: Sequence[str], reader: Reader, document: Document) -> tuple[_Text, ...]:
    """Read the files that a list of globs names, each once, in the order of their names."""
    found: dict[Path, None] = {}
    for glob in globs:
        try:
            matched = [each for each in sorted(path.parent.glob(glob)) if each.is_file()]
        except (ValueError, NotImplementedError):
            matched = []
        if not matched:
            reader.fault(
                document.root, "a path relative to this file that names at least one file", repr(glob), key=key
            )
        found.update(dict.fromkeys(matched))
    texts = [_read(each, path.parent, reader.faults) for each in found]
    return tuple(text for text in texts if text is not None)


def _dialects(texts: Sequence[_Text], faults: list[Fault]) -> dict[str, Dialect]:
    found: dict[str, Dialect] = {}
    for each in texts:
        dialect, problems = parse_dialect(each.text, each.file)
        faults.extend(problems)
        if dialect is None:
            continue
        if dialect.name in found:
            faults.append(Fault(each.file, "dialect", f"a second dialect named {dialect.name}", "each name once"))
        found[dialect.name] = dialect
    return found


def _rules(
    texts: Sequence[_Text],
    faults: list[Fault],
    cache: CompiledCache | None,
    coded: Coded,
    thresholds: Mapping[str, float] | None = None,
) -> tuple[tuple[Rule, ...], Engine | None]:
    """Parse the packs, build the engine and run every rule's examples; no engine where a pack is at fault.

    ``thresholds`` are the policy's own, by class, in place of the packs'.
    """
    rules: list[Rule] = []
    problems: list[Fault] = []
    known: dict[str, str] = {}
    for each in texts:
        parsed, found = parse_pack(each.text, each.file, _beside(each.file))
        problems.extend(found)
        for rule in parsed:
            if rule.id in known and known[rule.id] != each.file:
                problems.append(
                    Fault(each.file, f"rules[{rule.id}]", f"an id that {known[rule.id]} has", "each id once")
                )
            known.setdefault(rule.id, each.file)
        own = thresholds or {}
        rules.extend(replace(rule, threshold=own.get(rule.cls, rule.threshold)) for rule in parsed)
    faults.extend(problems)
    if problems:
        return tuple(rules), None
    try:
        engine = build((*rules, *coded.rules), cache)
    except RuleError as error:
        name = error.rule.partition(".")[2]
        faults.append(Fault(known[error.rule], f"rules[{name}].pattern", error.why, "a pattern that can be compiled"))
        return tuple(rules), None
    try:
        faults.extend(check_examples(rules, engine))
    except DetectorError as error:
        faults.append(
            Fault("the installed detectors", "match and pass", str(error), "checks that answer every example")
        )
    return (*rules, *coded.rules), engine


def _acts(actions: Mapping[tuple[str, Direction], Action]) -> dict[str, str]:
    return {cls: str(action) for (cls, way), action in actions.items() if way is Direction.RESPONSE}


def _beside(file: str) -> Callable[[str], str]:
    """Return what reads the text files that a pack names: they stand in or below its folder."""
    folder = Path(file).parent.resolve()

    def read_list(name: str) -> str:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder) or path.stat().st_size > FILE_BYTES:
            raise ValueError(name)
        return path.read_text("utf-8")

    return read_list


def _detectors(faults: list[Fault]) -> tuple[_Text, ...]:
    """Return the packs of the installed detectors; name and version are part of the policy's digest."""
    found, problems = plugged()
    faults.extend(problems)
    return tuple(_Text(each.file, f"detectors/{each.name}/{each.version}", each.pack) for each in found)


def _identities(reader: Reader, document: Document, folder: Path) -> tuple[Identity, ...] | None:
    """Make the paths of the files that identities name absolute; a provider's certificates have to be there."""
    if document.identities.all is None:
        return None
    found: list[Identity] = []
    for each in document.identities.all:
        if isinstance(each, StaticIdentity):
            found.append(replace(each, tokens=_absolute(folder, each.tokens)))
        elif isinstance(each, SamlIdentity):
            found.append(replace(each, metadata=_absolute(folder, each.metadata)))
        elif isinstance(each, CertificateIdentity):
            found.append(replace(each, ca=_absolute(folder, each.ca)))
        elif isinstance(each, OidcIdentity) and each.ca is not None:
            found.append(replace(each, ca=_absolute(folder, each.ca)))
            if not Path(_absolute(folder, each.ca)).is_file():
                node = document.identities.nodes[each.name]
                reader.fault(
                    node, "the path of a PEM file, relative to this file", repr(each.ca), f"{node.key}.oidc.ca"
                )
        else:
            found.append(each)
    return tuple(found)


def _state(reader: Reader, document: Document, folder: Path) -> State:
    """Find the control store: where the policy says, or beside the recording."""
    recording = Path(_absolute(folder, document.recording.path))
    node = document.state_path
    path = recording.parent / STATE_NAME if node is None else Path(_absolute(folder, str(node.value)))
    if node is not None and path == recording:
        reader.fault(node, "a file of its own", "the file of the recording")
    elif node is not None and path.is_dir():
        reader.fault(node, "the path of an SQLite file", "a directory")
    return State(str(path), document.state_retain)


def _prices(document: Document, folder: Path, faults: list[Fault]) -> tuple[Prices | None, tuple[_Text, ...]]:
    """Read the price table that the policy names."""
    node = document.budgets.prices
    if node is None:
        return None, ()
    text = _read(Path(_absolute(folder, str(node.value))), folder.resolve(), faults)
    if text is None:
        return None, ()
    prices, problems = parse_prices(text.text, text.file)
    faults.extend(problems)
    return prices, (text,)


def _absolute(folder: Path, path: str) -> str:
    return str((folder / path).resolve())


def _digest(texts: Sequence[_Text], files: Sequence[tuple[str, bytes]] = ()) -> str:
    """Hash names and texts with their lengths, so that no two sets of files give the same input."""
    digest = hashlib.sha256()
    for name, data in [*((each.name, each.text.encode()) for each in texts), *files]:
        for part in (name.encode(), data):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()
