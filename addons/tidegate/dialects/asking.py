"""What a request asks for: its model, whether to stream, its tools, how many output tokens."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.dialects.addresses import is_plain
from tidegate.dialects.fields import Trie
from tidegate.dialects.kinds import BodyKind
from tidegate.dialects.spec import Endpoint, JsonObject, ToolNames
from tidegate.model import Asked, Denial, Reason

_FLAGS: Mapping[str, bool] = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
"""How SDKs write true and false in a form."""


def asked(endpoint: Endpoint, body: JsonObject, model: str | None = None) -> Asked | Denial:
    """Read what a request asks for; ``model`` is named by its path.

    Returns a ``Denial`` with reason ``BODY_MALFORMED`` where a field is of the wrong type or says two different things.
    """
    spec = endpoint.asked
    models = [_short(each, spec.model_prefixes) for each in _values(spec.model, body)]
    if model is not None:
        models = [model] if spec.path_model else [*models, model]
    streams = _values(spec.stream, body)
    if BodyKind.FORM in endpoint.made_of.bodies:
        streams = [_FLAGS.get(each, each) if isinstance(each, str) else each for each in streams]
    outputs = _values(spec.max_output, body)
    tools: list[str] = []
    for found in spec.tools.select(body):
        for payload in found.payloads:
            names = tool_names(payload, found.value)
            if names is None:
                return malformed(f"{payload.each} holds a tool without a name or of an unknown form")
            tools.extend(names)
    if any(type(model) is not str or not model for model in models):
        return malformed("the model is not a text")
    if len(set(map(str, models))) > 1:
        return malformed("it names more than one model")
    if any(type(stream) is not bool for stream in streams) or len(set(map(str, streams))) > 1:
        return malformed("stream is neither true nor false")
    outputs = [-1 if value in spec.unlimited else value for value in outputs] if spec.unlimited else outputs
    limits = [value for value in outputs if type(value) is int and (value >= 0 or spec.endless or spec.unlimited)]
    if len(limits) != len(outputs):
        return malformed("the limit of output tokens is not a whole number")
    return Asked(
        model=str(models[0]) if models else None,
        stream=bool(streams[0] if streams else spec.streams),
        tools=tuple(dict.fromkeys(tools)),
        max_output=None if any(limit < 0 for limit in limits) else max(limits, default=None),
    )


def names_output(endpoint: Endpoint, body: JsonObject) -> bool:
    """Say whether a body says anything of a limit of output tokens."""
    return bool(_values(endpoint.asked.max_output, body))


def _values(paths: Trie[str], body: object) -> list[object]:
    return [found.value for found in paths.select(body) if found.value is not None]


def _short(model: object, prefixes: tuple[str, ...]) -> object:
    """Take one of the prefixes off the name of a model."""
    if not isinstance(model, str):
        return model
    return next((rest for each in prefixes if (rest := _without(each, model)) is not None), model)


def _without(prefix: str, model: str) -> str | None:
    """Return what follows a prefix, whose parts ``*`` are any plain part each; ``None`` where it is not there."""
    if "*" not in prefix:
        return model.removeprefix(prefix) if model.startswith(prefix) else None
    wanted, parts = prefix.split("/"), model.split("/")
    if len(parts) < len(wanted):
        return None
    fits = all(want == part or (want == "*" and is_plain(part)) for want, part in zip(wanted[:-1], parts, strict=False))
    rest = "/".join(parts[len(wanted) - 1 :])
    return rest.removeprefix(wanted[-1]) if fits and rest.startswith(wanted[-1]) else None


def malformed(what: str) -> Denial:
    """Refuse a body that is not what the dialect says."""
    return Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")


def tool_names(spec: ToolNames, tool: object) -> tuple[str, ...] | None:
    """Name one tool, or ``None`` where it cannot be named."""
    if not isinstance(tool, dict):
        return () if spec.only else None
    if spec.keyed is not None:
        return tuple(_camel(name) for name in tool if name not in spec.keyed)
    kind_of = tool.get("type", "")
    if not isinstance(kind_of, str):
        return None
    if (at := spec.named.get(kind_of)) is None:
        if spec.only:
            return ()
        name = tool.get("name")
        return (kind_of, name) if isinstance(name, str) and name else (kind_of,)
    value: object = tool
    for part in at:
        value = value.get(part) if isinstance(value, dict) else None
    return (value,) if isinstance(value, str) and value else None


def _camel(name: str) -> str:
    """Write a field name as proto-JSON does; it reads both spellings."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)
