"""The client without a service: what is sent again and when, how answers are read, what is kept secret."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhost.client import (
    BadAnswer,
    ConfigError,
    Problem,
    Retry,
    SandhostError,
    TooMany,
    Unavailable,
    Unreachable,
)
from sandhost.client.asks import calling, deploying, operating
from sandhost.client.asks.calling import call, call_bytes
from sandhost.client.asks.deploying import plugins, set_alias, upload
from sandhost.client.attempts import Pause, Send, run
from sandhost.client.replies import Gathering, Reply, problem_in
from sandhost.client.settings import Secret, Settings
from sandhost.protocol import problems
from sandhost.protocol.frames import Lines, Piece, end_line, piece_line
from sandhost.protocol.values import in_json, of_json

TOKEN = "sh_" + "t" * 43
OK = Reply(200, {"content-type": "application/json"}, b'{"results": [5]}')
RETRY = Retry()
LOST = Unreachable("the connection was lost", sent=True)
UNSENT = Unreachable("no service can be reached", sent=False)


def refusal(status: int, **more: object) -> Reply:
    title = {429: "too-many", 503: "unavailable", 404: "missing", 504: "deadline-passed"}[status]
    body = {"title": title, "status": status, "detail": "no", **more}
    return Reply(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


class Play:
    """Runs an operation against answers that are written down, on a clock that only pauses move."""

    def __init__(self, *script: Reply | Exception, retry: Retry | None = RETRY) -> None:
        self.script, self.retry = list(script), retry
        self.sent: list[Send] = []
        self.pauses: list[float] = []
        self.now_s = 100.0

    def do(self, steps: Any) -> Any:
        flow = run(steps, self.retry, now=lambda: self.now_s, chance=lambda: 1.0)
        step = next(flow)
        while True:
            try:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now_s += step.seconds
                    step = flow.send(None)
                    continue
                self.sent.append(step)
                answer = self.script.pop(0)
                step = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
            except StopIteration as stop:
                return stop.value


# ---- what is sent again ----


@pytest.mark.parametrize("first", [refusal(429), refusal(503), UNSENT])
def test_what_was_not_done_is_asked_again(first):
    play = Play(first, OK)
    assert play.do(call("p", "f", 2, 3)) == 5
    assert len(play.sent) == 2


@pytest.mark.parametrize("first", [refusal(404), refusal(504), LOST, BadAnswer("what?")])
def test_what_may_have_been_done_or_will_be_refused_again_is_not(first):
    play = Play(first)
    with pytest.raises(SandhostError):
        play.do(call("p", "f", 2, 3))
    assert len(play.sent) == 1


def test_with_a_key_it_is_asked_again_when_the_connection_was_lost_and_the_key_stays():
    play = Play(LOST, LOST, OK)
    assert play.do(call("p", "f", once=True)) == 5
    keys = {send.ask.headers["Idempotency-Key"] for send in play.sent}
    assert len(keys) == 1
    other = Play(OK)
    other.do(call("p", "f", once=True))
    assert other.sent[0].ask.headers["Idempotency-Key"] not in keys
    own = Play(OK)
    own.do(call("p", "f", once="order-17"))
    assert own.sent[0].ask.headers["Idempotency-Key"] == "order-17"


def test_reading_is_asked_again_and_changing_is_not():
    assert Play(LOST, OK._replace(body=b'{"plugins": []}')).do(plugins()) == ()
    with pytest.raises(Unreachable):
        Play(LOST).do(set_alias("p", "live", 1))


def test_an_upload_has_a_key_of_its_own():
    record = {
        "plugin": "p",
        "version": 1,
        "state": "ready",
        "error": None,
        "digest": "",
        "bytes": 1,
    }
    play = Play(LOST, OK._replace(status=202, body=json.dumps(record).encode()))
    assert play.do(upload("p", b"x")).number == 1
    assert len({send.ask.headers["Idempotency-Key"] for send in play.sent}) == 1


def test_a_body_that_was_taken_in_pieces_is_not_sent_again():
    steps = call_bytes("p", "f", iter([b"a", b"b"]), once=True)
    flow = run(steps, Retry())
    send = next(flow)
    assert isinstance(send, Send)
    assert send.ask.body is not None
    assert next(send.ask.body.pieces()) == b"a"
    with pytest.raises(Unreachable):
        flow.throw(LOST)
    untouched = Play(UNSENT, OK)
    assert untouched.do(call_bytes("p", "f", iter([b"a"]))) == OK.body


def test_pauses_grow_and_are_bounded_in_number_and_in_all():
    play = Play(*[refusal(503)] * 9, retry=Retry(attempts=5, first_s=1.0, most_s=3.0))
    with pytest.raises(Unavailable):
        play.do(call("p", "f"))
    assert play.pauses == [1.0, 2.0, 3.0, 3.0]
    play = Play(*[refusal(503)] * 9, retry=Retry(attempts=9, within_s=4.0, first_s=1.0, most_s=9.0))
    with pytest.raises(Unavailable):
        play.do(call("p", "f"))
    assert play.pauses == [1.0, 2.0]


def test_the_service_says_when_to_come_again():
    play = Play(refusal(429, retry_after_s=2.5), OK)
    play.do(call("p", "f"))
    assert play.pauses == [2.6]
    hinted = refusal(429)
    play = Play(hinted._replace(headers={**hinted.headers, "retry-after": "7"}), OK)
    play.do(call("p", "f"))
    assert play.pauses == [7.1]
    with pytest.raises(TooMany) as caught:
        Play(refusal(429, retry_after_s=3600)).do(call("p", "f"))
    assert caught.value.retry_after_s == 3600


def test_no_pause_goes_beyond_the_deadline_and_each_attempt_has_what_is_left():
    play = Play(refusal(503), refusal(503), retry=Retry(first_s=1.0))
    with pytest.raises(Unavailable):
        play.do(call("p", "f", deadline_s=2.0))
    assert [send.left_s for send in play.sent] == [2.0, 1.0]


def test_retries_can_be_turned_off():
    with pytest.raises(Unreachable):
        Play(UNSENT, retry=None).do(call("p", "f"))
    with pytest.raises(ConfigError):
        Retry(attempts=0)


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e6), st.floats(0, 1))
def test_a_pause_is_never_before_the_hint_and_never_without_end(failed, hint_s, chance):
    retry = Retry()
    pause_s = retry.pause_s(failed, hint_s, chance)
    assert (hint_s or 0) + retry.first_s / 2 <= pause_s <= (hint_s or 0) + retry.most_s


# ---- what is asked ----


def test_names_cannot_leave_their_place_in_a_path():
    play = Play(OK)
    play.do(call("a/../b?x", "f#g"))
    assert play.sent[0].ask.path == "/v1/plugins/a%2F..%2Fb%3Fx/call/f%23g"
    for name in ("", ".", ".."):
        with pytest.raises(ConfigError):
            Play().do(call(name, "f"))


@pytest.mark.parametrize("value", [True, "7", None, b"short", 2**64, -(2**63) - 1, [1]])
def test_what_is_no_value_of_wasm_is_refused_before_it_is_sent(value):
    with pytest.raises(ConfigError):
        Play().do(call("p", "f", value))


@pytest.mark.parametrize("more", [{"deadline_s": -1}, {"deadline_s": math.nan}, {"once": "a\nb"}])
def test_what_cannot_be_sent_is_refused_here(more):
    with pytest.raises(ConfigError):
        Play().do(call("p", "f", **more))


@given(
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(min_size=16, max_size=16))
)
def test_values_come_out_of_json_as_they_went_in(values):
    text = json.dumps([in_json(value) for value in values], allow_nan=False)
    back = [of_json(held) for held in json.loads(text)]
    assert [(type(v), repr(v)) for v in back] == [(type(v), repr(v)) for v in values]


@pytest.mark.parametrize("held", [None, True, "inf", "00", [1], {}])
def test_what_is_no_value_is_not_read_as_one(held):
    with pytest.raises(ValueError):
        of_json(held)
    with pytest.raises(BadAnswer):
        Play(OK._replace(body=json.dumps({"results": [held]}).encode())).do(call("p", "f"))


# ---- answers ----


def test_every_problem_of_the_service_is_a_class_of_its_own_here():
    import sandhost.client

    for kind in Problem.__subclasses__():
        assert getattr(sandhost.client, kind.__name__) is kind
        assert problems.kind_of(kind.code) is kind


def test_a_problem_is_read_with_all_that_it_says_and_survives_pickle():
    problem = problem_in(refusal(429, retry_after_s=1.5, limit=7))
    assert type(problem) is TooMany
    assert (problem.status, problem.detail, problem.retry_after_s) == (429, "no", 1.5)
    assert problem.facts == {"limit": 7}
    again = pickle.loads(pickle.dumps(problem))
    assert (type(again), again.facts, str(again)) == (TooMany, {"limit": 7}, "no")


def test_a_problem_of_a_newer_service_is_a_problem():
    body = b'{"title": "novel", "detail": "so new"}'
    problem = problem_in(Reply(418, {"content-type": "application/problem+json"}, body))
    assert type(problem) is Problem
    assert (problem.code, problem.status, problem.detail) == ("novel", 418, "so new")


def test_what_lies_before_the_service_may_answer_in_words_of_its_own():
    page = Reply(503, {"content-type": "text/html", "retry-after": "4"}, b"<h1>Busy</h1>")
    problem = problem_in(page)
    assert isinstance(problem, Unavailable)
    assert problem.retry_after_s == 4
    moved = problem_in(Reply(301, {"location": "https://elsewhere"}, b""))
    assert isinstance(moved, BadAnswer)
    assert "https://elsewhere" in str(moved)


@given(st.binary(max_size=200), st.sampled_from([200, 201, 404, 429, 500]))
def test_no_answer_makes_anything_but_an_error_of_ours(body, status):
    reply = Reply(status, {"content-type": "application/problem+json"}, body)
    with pytest.raises(SandhostError):
        Play(reply, retry=None).do(plugins())


def test_a_body_is_taken_as_it_is_and_not_beyond_the_limit():
    gathering = Gathering({}, 10)
    gathering.add(b"x" * 10)
    with pytest.raises(BadAnswer, match="10 bytes"):
        gathering.add(b"x")
    with pytest.raises(BadAnswer, match="compressed"):
        Gathering({"content-encoding": "gzip"}, 10)


# ---- a command's lines ----

PIECES = st.lists(st.builds(Piece, st.sampled_from(["stdout", "stderr"]), st.binary(max_size=50)))


@given(PIECES, st.integers(0, 255), st.data())
def test_lines_are_read_however_they_are_cut(pieces, status, data):
    text = b"".join(piece_line(*piece) for piece in pieces) + end_line(status)
    lines, read = Lines(), []
    while text:
        cut = data.draw(st.integers(1, len(text)))
        read += lines.feed(text[:cut])
        text = text[cut:]
    assert read == pieces
    assert lines.end == status


def test_a_command_can_end_with_a_problem():
    lines = Lines()
    lines.feed(end_line(problems.GuestFailed("it trapped", facts={"trap": "unreachable"})))
    assert isinstance(lines.end, problems.GuestFailed)
    assert lines.end.facts == {"trap": "unreachable"}


@pytest.mark.parametrize(
    "text",
    [
        b"[]\n",
        b"rubbish\n",
        b'{"stdout": 1}\n',
        b'{"stdout": "!"}\n',
        b'{"exit": true}\n',
        b"{}\n",
        b'{"exit": 0}\n{"exit": 0}\n',
    ],
)
def test_lines_that_are_none_are_refused(text):
    with pytest.raises(ValueError):
        Lines().feed(text)


# ---- who asks, and where ----


def settings(url: str | None = "http://a", token: str | None = TOKEN, **more: Any) -> Settings:
    return Settings.make(url, token, more.pop("timeout_s", 60.0), "1 MiB", None, None)


def test_address_and_token_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("SANDHOST_URL", raising=False)
    with pytest.raises(ConfigError, match="SANDHOST_URL"):
        settings(None, None)
    monkeypatch.setenv("SANDHOST_URL", "http://host:1/prefix/")
    monkeypatch.setenv("SANDHOST_TOKEN", TOKEN)
    made = settings(None, None)
    assert made.url == "http://host:1/prefix"
    assert made.token is not None
    assert made.token.reveal() == TOKEN
    assert TOKEN not in repr(made)


@pytest.mark.parametrize(
    "url",
    [
        "host",
        "ftp://host",
        "http://",
        "http://u:p@host",
        "http://host?x",
        "http://h:port",
        "http://[",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError):
        settings(url)


@pytest.mark.parametrize("token", ["", "two words", "a\r\nX-More: 1", "\u00fc"])
def test_a_token_that_is_none_is_refused_and_not_repeated(token):
    with pytest.raises(ConfigError) as caught:
        Secret(token)
    assert not token or token not in str(caught.value)


def test_the_client_loads_neither_c_nor_wasmtime():
    code = (
        "import sys, sandhost.client\n"
        "first = sorted({'httpx', 'sandhost._native'} & set(sys.modules))\n"
        "sandhost.client.Client('http://127.0.0.1:1', 'x'), sandhost.client.AsyncClient\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(first, 'sandhost._native' in sys.modules, 'wasmtime' in maps)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd="/",
    )
    assert done.stdout == "[] False False\n"


def test_every_operation_tells_what_it_does_on_both_faces():
    from sandhost.client import AsyncClient, Client

    named = {name for module in (calling, deploying, operating) for name in module.__all__}
    names = sorted(named & set(dir(Client)))
    assert len(names) >= 18
    for name in names:
        assert getattr(Client, name).__doc__
        assert getattr(AsyncClient, name) is getattr(Client, name)
