"""What a name or dotted path leads to, and the line that says why it leads nowhere."""

import pytest

from uscl.errors import InputError
from uscl.registry import Registry


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    for name, text in {
        "own_parts": "def reader(): ...\nnumber = 3\n",
        "own_broken": "import own_that_is_not_there\n",
        "own_fails": "raise RuntimeError('no licence')\n",
        "own_typo": "def f(:\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("reader", {"len": len}, callable, "a function")


def test_registered_and_dotted_names(registry):
    assert registry.find("len") is len
    assert registry.find("own_parts.reader").__name__ == "reader"
    assert registry.register("all", all) is all
    assert registry.register("all", all) is all, "twice the same"
    assert list(registry) == ["len", "all"]


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "max": "no reader is called 'max'; registered are len; your own is named by its path, MODULE.NAME",
        "own_nothing.read": "reader 'own_nothing.read': Python finds no module 'own_nothing'",
        "own_parts.inner.read": "Python finds no module 'own_parts.inner'",
        "own_parts.writer": "own_parts has no 'writer'",
        "own_parts.number": "is 3; expected a function",
        "own_broken.read": r"own_broken cannot be imported \(ModuleNotFoundError: No module named 'own_that_is_not",
        "own_fails.read": r"own_fails cannot be imported \(RuntimeError: no licence\); correct it",
        "own_typo.read": r"own_typo cannot be imported \(SyntaxError",
    }.items(),
)
def test_what_leads_nowhere_is_named_in_one_line(registry, name, message):
    with pytest.raises(InputError, match=message) as error:
        registry.find(name)
    assert "\n" not in str(error.value)


def test_a_name_is_given_once(registry):
    with pytest.raises(InputError, match="'len' is registered as a reader already"):
        registry.register("len", max)
    with pytest.raises(InputError, match="reader 'three': is 3; expected a function"):
        registry.register("three", 3)
