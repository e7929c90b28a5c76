"""One list per kind of what ``uscl`` can use, open to its users.

A member is found by its registered name, or by the dotted path of an object in a module that Python can import: one
that is installed, or one in the folder that ``uscl`` is run in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import get_annotations
from typing import Generic, TypeVar

from uscl.errors import InputError

T = TypeVar("T")


def hidden_settings(kind: type) -> list[str]:
    """Settings that a class annotates below its last dataclass: neither files nor tables would have them."""
    below = itertools.takewhile(lambda base: "__dataclass_fields__" not in vars(base), kind.__mro__)
    annotated = {name: str(hint) for base in below for name, hint in get_annotations(base).items()}
    return sorted(name for name, hint in annotated.items() if "ClassVar" not in hint)


class Registry(Generic[T]):
    """Members of one kind by name.

    Args:
        kind: what they are, for messages, e.g. ``data set``.
        members: those that come with the package.
        fits: whether an object is of this kind.
        expected: what that takes, in words.
    """

    def __init__(self, kind: str, members: Mapping[str, T], fits: Callable[[object], bool], expected: str) -> None:
        self.kind = kind
        self._members = dict(members)
        self._fits, self._expected = fits, expected

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> T:
        return self._members[name]

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and members, in the order of registration."""
        return iter(self._members.items())

    def register(self, name: str, member: T) -> T:
        """Adds a member and returns it.

        Raises:
            InputError: another member has this name, or it is of another kind.
        """
        self._check(name, member)
        if self._members.setdefault(name, member) is not member:
            raise InputError(f"{name!r} is registered as a {self.kind} already; choose another name")
        return member

    def find(self, name: str) -> T:
        """The member of a name or dotted path.

        Raises:
            InputError: nothing is registered under the name, the path leads nowhere, the module cannot be imported, or
                what lies there is of another kind.
        """
        if name in self._members:
            return self._members[name]
        module, _, attribute = name.rpartition(".")
        known = f"registered are {', '.join(self._members)}; your own is named by its path, MODULE.NAME"
        if not module:
            raise InputError(f"no {self.kind} is called {name!r}; {known}")
        try:
            imported = import_module(module)
        except Exception as error:  # whatever the module does when it is imported
            if isinstance(error, ModuleNotFoundError) and (module + ".").startswith(f"{error.name}."):
                raise InputError(f"{self.kind} {name!r}: Python finds no module {error.name!r}; {known}") from error
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.kind} {name!r}: {module} cannot be imported ({reason}); correct it") from error
        if not hasattr(imported, attribute):
            raise InputError(f"{self.kind} {name!r}: {module} has no {attribute!r}; {known}")
        member: T = getattr(imported, attribute)
        self._check(name, member)
        return member

    def _check(self, name: str, member: object) -> None:
        if not self._fits(member):
            raise InputError(f"{self.kind} {name!r}: is {member!r}; expected {self._expected}")
