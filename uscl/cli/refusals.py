"""What a parser refuses, in one line."""

from __future__ import annotations

import re

_KEY = re.compile(r'Parser key "([^"]*)":\s*(.*)')
_FRAME = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Problem with given class_path")


def reason_in(message: str) -> str:
    """The innermost reason of a message of jsonargparse, after the name of the setting that it is about.

    Where a setting may be several types, the message holds a reason for each, indented as deep as the type was parsed:
    the deepest is about the type that was meant.

    Args:
        message: of one or of many lines.
    """
    found: tuple[int, list[str], str] | None = None
    outer: list[tuple[int, str]] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        depth = line.find(text)
        outer = [(at, key) for at, key in outer if at < depth]
        if key := _KEY.search(text):
            outer.append((depth, key[1]))
            text = key[2]
        if text and not text.startswith(_FRAME) and (found is None or depth > found[0]):
            found = depth, [name for _, name in outer], text
    if found is None:
        return message.strip()
    names = ".".join(found[1])
    return f"{names}: {found[2]}" if names else found[2]
