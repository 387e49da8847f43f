"""What `sandhost top` and `sandhost report` make of a view, whatever its names are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from helpers.views import HOSTILE_NAMES, made_view
from rich.cells import cell_len

from sandhost.cli.screen import SORTS, frame
from sandhost.errors import SandhostError
from sandhost.govern.slots import SlotRow
from sandhost.govern.stats import Latency
from sandhost.observe.charts import histogram, range_of
from sandhost.observe.picture import slot_map
from sandhost.observe.records import from_json, to_json
from sandhost.observe.report import render
from sandhost.observe.views import View

_VOID = {"meta", "br", "img", "input", "link", "hr"}


class _Checker(HTMLParser):
    """Fails where tags do not nest, and keeps all tags and texts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def checked(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def empty() -> View:
    return made_view((), slots=0)._replace(
        tenants=(), pressure=None, collector=None, latency={n: Latency(0, 0, ()) for n in ("spawn", "call")}
    )  # fmt: skip


VIEWS = {
    "empty": empty(),
    "ordinary": made_view(),
    "hostile": made_view(HOSTILE_NAMES, slots=5000),
    "many tenants": made_view([f"tenant {n}" for n in range(1000)], slots=20_000),
}


# ---- records ----


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_comes_back_from_json_as_it_was(name):
    text = to_json(VIEWS[name])
    assert from_json(View, text) == VIEWS[name]
    assert text.isascii()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda view: view.pop("tenants"),
        lambda view: view.update(tenants={}),
        lambda view: view["process"].update(pid="1"),
        lambda view: view["process"].update(pid=True),
        lambda view: view["figures"].pop("spawns"),
        lambda view: view["slots"].update(states=[1]),
        lambda view: view["latency"]["call"].update(buckets=[[1, 2, 3]]),
        lambda view: view["doing"].update(idle=None),
    ],
)
def test_json_of_another_shape_is_refused(spoil):
    view = json.loads(to_json(made_view()))
    spoil(view)
    with pytest.raises(SandhostError, match="no View of this version"):
        from_json(View, json.dumps(view).encode())


@pytest.mark.parametrize("text", [b"", b"nothing", b"[]", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(SandhostError):
        from_json(View, text)


# ---- the heat map ----


def test_the_heat_map_holds_all_slots_in_few_cells():
    rows = [SlotRow("cold", 0, 0, 0, "", None, 0)] * 1000
    rows[500] = SlotRow("quarantined", 4096, 0, 0, "", None, 0)
    rows[10] = SlotRow("live", 8192, 4096, 7, "p", "t", 0)
    found = slot_map(rows, most=64)
    assert len(found.states) == len(found.resident_bytes) == 63
    assert (found.slots, found.per_cell) == (1000, 16)
    assert found.counts == {"cold": 998, "live": 1, "quarantined": 1}
    assert sum(found.resident_bytes) == 4096 == found.resident["live"]
    assert found.states.count("quarantined") == 1  # however many others are in its cell
    assert found.names[found.owners[0]] == ("p", "t")
    assert set(found.owners[1:]) == {-1}


# ---- the terminal ----


@pytest.mark.parametrize("size", [(80, 24), (132, 50), (20, 5), (300, 100)])
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("sort", SORTS)
def test_a_frame_fits_the_terminal_and_steers_nothing(name, size, sort):
    columns, lines = max(size[0], 80), max(size[1], 24)
    view = VIEWS[name]
    for before in (None, view._replace(taken_s=view.taken_s - 1)):
        texts = frame(
            view,
            before,
            columns=size[0],
            lines=size[1],
            sort=sort,
            trend=(10**8, 10**9),
            help_line="q",
        )
        assert len(texts) <= lines
        for text in texts:
            assert cell_len(text.plain) <= columns
            assert text.plain.isprintable()


def test_tenants_are_sorted_by_what_was_asked_for():
    view = made_view([f"t{n}" for n in range(50)])._replace(plugins=())
    tenants = [t._replace(handles=0) for t in view.tenants]
    tenants[7] = tenants[7]._replace(handles=999)
    tenants[9] = tenants[9]._replace(guests=999)
    view = view._replace(tenants=tuple(tenants))

    def first(sort):
        lines = [text.plain for text in frame(view, sort=sort)]
        heading = next(at for at, line in enumerate(lines) if line.startswith("tenant"))
        return lines[heading + 1].split()[0]

    assert (first("h"), first("g"), first("m")) == ("t7", "t9", "(no")


def test_rates_are_of_the_time_between_two_views():
    before = made_view()
    figures = before.figures._replace(memory_refusals=before.figures.memory_refusals + 30)
    after = before._replace(taken_s=before.taken_s + 2, figures=figures)
    assert any("15/s" in text.plain for text in frame(after, before))
    assert not any("/s" in text.plain for text in frame(after, after))


# ---- the page ----


@pytest.mark.parametrize("name", VIEWS)
def test_a_report_is_well_formed_and_needs_nothing_else(name):
    page = render(VIEWS[name])
    found = checked(page)
    assert {tag for tag, _ in found.tags}.isdisjoint(
        {"script", "img", "link", "iframe", "object", "a"}
    )
    for _, attributes in found.tags:
        assert not any(key.startswith("on") or key in ("src", "href") for key in attributes)
    assert not re.search(r"url\(|@import|https?://", page)
    page.encode("ascii", "xmlcharrefreplace")
    assert all(character.isprintable() or character == "\n" for character in page)


def test_hostile_names_are_shown_as_text():
    page = render(VIEWS["hostile"])
    texts = "".join(checked(page).texts)
    assert "<script>alert(1)</script>" in texts
    assert "<script" not in page
    assert "\\u202e" in texts
    assert "x" * 301 not in texts


def test_a_thousand_tenants_are_all_there_most_of_them_folded():
    texts = "".join(checked(render(VIEWS["many tenants"])).texts)
    assert all(f"tenant {n}" in texts for n in (0, 500, 999))
    assert "971 more" in texts


def test_a_histogram_shows_every_time_between_its_ends():
    latency = Latency(3, 10**9, ((1, 1), (1000, 1), (10**9, 1)))
    low, high = range_of([latency])
    assert low <= 0
    assert 2**high > 10**9
    found = checked(histogram(latency, low, high, "x"))
    bars = [a for tag, a in found.tags if tag == "rect"]
    assert len(bars) == 3
    assert all(0 <= float(bar["x"] or "") < 960 for bar in bars)
