"""What a parser refuses, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from uscl.errors import InputError

_KEY = re.compile(r'Parser key "([^"]*)":\s*(.*)')
_FRAME = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Expected a path",
)
_VALUE = re.compile(r"(?:Given|Got) value: (?:NestedArg\(key='[^']*', val='(.*)'\)|(.*?)(?:\. Got value.*)?)$")
_EXPECTED = "Expected a "


def reason_in(message: str) -> str:
    """The innermost reason of a message of jsonargparse, after the name of the setting that it is about.

    Where a setting may be several types, the message holds a reason for each, indented as deep as the type was parsed:
    the deepest ones are about the type that was meant.

    Args:
        message: of one or of many lines.
    """
    reasons: list[tuple[int, str, str]] = []
    outer: list[tuple[int, str]] = []
    given = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if not text:
            continue
        depth = line.find(text)
        outer = [(at, key) for at, key in outer if at < depth]
        if key := _KEY.search(text):
            outer.append((depth, key[1]))
            text = key[2]
        if value := _VALUE.search(text):
            given, text = given or value[1] or value[2], text[: value.start()].rstrip(" .")
        if text and not text.startswith(_FRAME):
            reasons.append((depth, ".".join(name for _, name in outer), text))
    if not any(name for _, name, _ in reasons):
        return " ".join(message.split())
    deepest = max(depth for depth, _, _ in reasons)
    names, texts = zip(*((name, text) for depth, name, text in reasons if depth == deepest), strict=True)
    return f"{names[0]}: {_joined(texts, given)}"


def _joined(texts: Iterable[str], given: str) -> str:
    """Reasons that say different things, the first; those that name types that were expected, together."""
    other = [text for text in texts if not text.startswith(_EXPECTED)]
    if other:
        return other[0]
    types = dict.fromkeys(_in_words(text.removeprefix(_EXPECTED)) for text in texts)
    return f"expected {' or '.join(types)}, found {given}"


def _in_words(kind: str) -> str:
    if kind.startswith("dot import path string"):
        return "the name or dotted path of a class"
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")


def check_configs(args: Iterable[str]) -> None:
    """Reads the files behind ``--config``: the parser's own message would not name the file.

    Raises:
        InputError: one that is there is no YAML, or no mapping.
    """
    previous = ""
    for arg in args:
        option, equals, value = arg.partition("=")
        file = value if equals and option in _OPTIONS else arg if previous in _OPTIONS else ""
        previous = arg
        if file and Path(file).is_file():
            try:
                content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise InputError(f"{file}: not readable as YAML in UTF-8 ({' '.join(str(error).split())})") from error
            if not isinstance(content, dict):
                raise InputError(f"{file}: holds {type(content).__name__}; expected settings, NAME: VALUE")


_OPTIONS = ("--config", "-c")
