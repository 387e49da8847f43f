"""Tokens: what is random, what is kept, and what the time of an answer tells."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

import sandhost
from sandhost.serve.problems import Unknown
from sandhost.serve.registry import Registry
from sandhost.serve.store import Store
from sandhost.serve.tokens import Scope, digest_of, is_token, new_token, token_id

OURS = str(Path(sandhost.__file__).parent)


def test_a_token_is_256_random_bits_and_its_digest_sha256():
    made = [new_token() for _ in range(100)]
    assert len({text for text, _ in made}) == 100
    for text, digest in made:
        assert is_token(text)
        assert len(text) == 46
        assert digest == digest_of(text) == hashlib.sha256(text.encode()).digest()
        assert token_id(digest) == digest.hex()[:16]


@pytest.mark.parametrize("text", ["", "sh_", "sh_" + "a" * 42, "sh_" + "a" * 44, "sh_" + "ä" * 43])
def test_other_texts_are_no_tokens(text):
    assert not is_token(text)
    assert not is_token(new_token()[0] + "\n")


@pytest.mark.parametrize("text", ["", "\0", "ä", "\udc80", "x" * 100_000])
def test_any_text_has_a_digest(text):
    assert len(digest_of(text)) == 32


def test_how_much_of_a_token_is_right_changes_nothing_of_what_is_done(tmp_path):
    """Whatever could take longer would be a line or a call more."""

    def trace(text: str) -> list[tuple[str, int, str]]:
        done: list[tuple[str, int, str]] = []

        def record(frame, event, _argument):
            if frame.f_code.co_filename.startswith(
                OURS
            ):  # and not what the collector runs meanwhile
                done.append((frame.f_code.co_name, frame.f_lineno, event))
            return record

        before = sys.gettrace()
        sys.settrace(record)
        try:
            registry.tokens.who(text)
        except Unknown:
            pass
        finally:
            sys.settrace(before)
        return done

    with Store(tmp_path) as store:
        registry = Registry(store)
        registry.tenants.add("acme")
        token = registry.tokens.add("acme", [Scope.INVOKE])
        wrong = [
            token[:right] + "".join("-" if c != "-" else "_" for c in token[right:])
            for right in range(len(token))
        ]
        trace(wrong[0])  # what is done once is done
        traces = [trace(text) for text in wrong]
        assert len(traces[0]) > 3
        assert [one for one in traces if one != traces[0]] == []
        assert trace(token) != traces[0]
