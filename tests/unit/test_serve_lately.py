"""Who used much of the loop's time lately, and gives way to those who used little."""

from __future__ import annotations

from sandhost.serve.lately import Lately, Use

WINDOW_S = 0.1


def _use(lately: Lately, now_s: float, uses: dict[Use, float]) -> None:
    """Use some in each of ten pieces of a window."""
    for piece in range(10):
        for use, seconds in uses.items():
            lately.charge(use, seconds / 10, now_s + piece * WINDOW_S / 10)


def test_who_uses_more_than_others_gives_way_as_long_as_there_are_others() -> None:
    lately, much, little = Lately(), Use(), [Use() for _ in range(5)]
    everybody = {much: 0.03, **dict.fromkeys(little, 0.002)}
    _use(lately, 100.0, everybody)
    assert not lately.gives_way(much, 100.09), "nobody knows yet how much is much"
    _use(lately, 100.0 + WINDOW_S, everybody)
    assert lately.gives_way(much, 100.19)
    assert not any(lately.gives_way(one, 100.19) for one in little)
    assert not lately.gives_way(much, 100.19 + 0.03), "there are no others any more"


def test_where_all_use_as_much_nobody_gives_way() -> None:
    lately, everybody = Lately(), [Use() for _ in range(4)]
    for window in range(10):
        _use(lately, window * WINDOW_S, dict.fromkeys(everybody, 0.02))
        assert not any(lately.gives_way(one, (window + 0.9) * WINDOW_S) for one in everybody)


def test_where_all_use_little_who_uses_thrice_as_much_does_not_give_way() -> None:
    lately, more, little = Lately(), Use(), [Use() for _ in range(18)]
    for window in range(10):
        _use(lately, window * WINDOW_S, {more: 0.003, **dict.fromkeys(little, 0.001)})
        assert not lately.gives_way(more, (window + 0.9) * WINDOW_S)


def test_who_is_alone_does_not_give_way() -> None:
    lately, one = Lately(), Use()
    for window in range(10):
        _use(lately, window * WINDOW_S, {one: 0.1})
        assert not lately.gives_way(one, (window + 0.9) * WINDOW_S)


def test_what_was_used_before_is_forgotten() -> None:
    lately, much, little = Lately(), Use(), Use()
    for window in range(3):
        _use(lately, window * WINDOW_S, {much: 0.08, little: 0.001})
    at_s = 3 * WINDOW_S
    lately.charge(little, 0.001, at_s)
    assert lately.gives_way(much, at_s), "of the window before"
    lately.charge(much, 0.0001, at_s)
    assert lately.gives_way(much, at_s)
    _use(lately, at_s + WINDOW_S, {little: 0.001})
    lately.charge(little, 0.0001, at_s + 2 * WINDOW_S)
    assert not lately.gives_way(much, at_s + 2 * WINDOW_S)
    lately.charge(little, 0.0001, 100.0)
    lately.charge(much, 0.0001, 100.0)
    assert not lately.gives_way(much, 100.0), "nothing was used for long"
