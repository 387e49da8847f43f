"""No name of a tenant or plugin gets out of its place, on a terminal or on a page."""

from __future__ import annotations

from html.parser import HTMLParser

from helpers import examples
from helpers.views import made_view
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from sandhost.cli.screen import frame
from sandhost.observe.records import from_json, to_json
from sandhost.observe.report import render
from sandhost.observe.views import View


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def tags(page):
    parser = _Tags()
    parser.feed(page)
    return parser.found


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=examples(200), deadline=None)
def test_any_name_is_only_text(name):
    view = made_view([name])
    assert from_json(View, to_json(view)) == view
    for text in frame(view, columns=80, lines=24):
        assert cell_len(text.plain) <= 80
        assert text.plain.isprintable()
    assert tags(render(view)) == tags(render(made_view(["plain"])))
