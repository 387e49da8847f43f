"""What calls a plugin's functions is made for those that are asked for, not for all."""

from __future__ import annotations

import pytest

from sandhost.calls import Cells
from sandhost.errors import ConfigError
from sandhost.exports import Exports
from sandhost.modules.types import FuncType

ADD = FuncType(("i32", "i32"), ("i32",))


@pytest.fixture
def exports() -> Exports:
    exports = Exports()
    for number in range(10):
        exports.add(f"f{number}", ADD)
    return exports


def test_what_calls_a_function_is_made_once_when_it_is_asked_for(exports: Exports) -> None:
    assert list(exports.types) == [f"f{number}" for number in range(10)]
    for made in (exports.invokers, exports.lives, exports.cells):
        assert len(made) == 0
        first = made["f3"]
        assert made["f3"] is first
        assert list(made) == ["f3"]
    assert isinstance(exports.cells["f7"], Cells)
    assert exports.cells["f7"].index == 7, "C's number for it"


def test_a_function_that_is_not_there_is_refused_with_some_that_are(exports: Exports) -> None:
    for made in (exports.invokers, exports.lives, exports.cells):
        with pytest.raises(ConfigError, match=r"no function 'g'; it exports f0, .*f7, …$"):
            made["g"]
        assert len(made) == 0
    with pytest.raises(ConfigError, match="it exports none"):
        Exports().cells["g"]
