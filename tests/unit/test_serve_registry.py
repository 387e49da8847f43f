"""The registry: what it refuses, what it answers, and that no tenant learns of another."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest

from sandhost import ConfigError
from sandhost.serve.problems import (
    Conflict,
    Invalid,
    Missing,
    NotReady,
    Problem,
    TooLarge,
    TooMany,
    Unknown,
)
from sandhost.serve.refusals import Refusal, Refusals
from sandhost.serve.registry import (
    OPERATOR,
    Alias,
    Answer,
    Bounds,
    Principal,
    Registry,
    Scope,
    Tenant,
    VersionSettings,
)
from sandhost.serve.registry.first_tokens import ensure_admin
from sandhost.serve.store import Store
from sandhost.serve.tokens import digest_of, is_token, new_token, token_id
from sandhost.tenants import Quotas


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def registry(store, clock):
    registry = Registry(store, now=clock)
    registry.tenants.add("acme")
    return registry


def upload(registry, number=None, *, tenant="acme", plugin="wc", module=b"module", ready=True):
    """Add a version, and see that it has the number that is expected."""
    digest, size = registry.blobs.put([module], 1 << 20)
    version = registry.plugins.add_version(tenant, plugin, digest, size)
    if number is not None:
        assert version.number == number
    return (
        registry.plugins.mark_ready(registry.plugins.version(tenant, plugin, version.number))
        if ready
        else version
    )


def refusal(problem: type[Problem], call, *arguments) -> str:
    with pytest.raises(problem) as caught:
        call(*arguments)
    return caught.value.detail


def again(store, clock) -> Registry:
    """What a restart would know."""
    return Registry(store, now=clock)


def same(one: Registry, other: Registry) -> bool:
    parts = ("tenants", "tokens", "plugins", "answers", "audit")
    return all(state(getattr(one, part)) == state(getattr(other, part)) for part in parts)


def state(part: object) -> dict[str, object]:
    """What a part of the registry holds in memory, without what it stands on."""
    data = (dict, set, int)
    return {name: value for name, value in vars(part).items() if type(value) in data}


# ---- tenants ----


def test_a_tenant_has_quotas_that_can_be_replaced(registry, store, clock):
    assert registry.tenants.find("acme") == Tenant("acme", Quotas())
    registry.tenants.update("acme", Quotas(guests=5))
    assert registry.tenants.find("acme").quotas == Quotas(guests=5)
    registry.tenants.update("acme", Quotas(cpus=2))
    assert list(again(store, clock).tenants) == [Tenant("acme", Quotas(cpus=2))]
    with pytest.raises(Conflict, match="there is a tenant 'acme' already"):
        registry.tenants.add("acme")
    with pytest.raises(Missing, match="there is no tenant 'other'"):
        registry.tenants.update("other", Quotas())


@pytest.mark.parametrize(
    "name",
    ["", "A", "a/b", ".a", "a.", "-a", "a" * 64, "a b", "ä", "a\n", "a\0", "..", "\udc80", "٣"],
)
def test_some_names_are_refused(registry, name):
    with pytest.raises(Invalid, match="cannot be the name of a tenant"):
        registry.tenants.add(name)
    with pytest.raises(Invalid, match="cannot be the name of a plugin"):
        upload(registry, plugin=name)
    upload(registry, plugin="wc")
    with pytest.raises(Invalid, match="cannot be the name of an alias"):
        registry.aliases.set("acme", "wc", name, 1)
    assert len(refusal(Invalid, registry.tenants.add, name)) < 300


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "word-count_2.v1"])
def test_other_names_are_taken(registry, name):
    registry.tenants.add(name)
    upload(registry, 1, tenant=name, plugin=name)
    assert registry.plugins.resolve(name, name).number == 1


# ---- tokens ----


def test_a_token_is_known_until_it_expires_or_is_revoked(registry, clock):
    text = registry.tokens.add("acme", [Scope.DEPLOY, Scope.INVOKE], "ci", expires=1500.0)
    other = registry.tokens.add("acme", [Scope.INVOKE])
    assert registry.tokens.who(text) == Principal(
        "acme", frozenset([Scope.DEPLOY, Scope.INVOKE]), token_id(digest_of(text))
    )
    clock.now = 1499.9
    registry.tokens.who(text)
    clock.now = 1500.0
    said = {refusal(Unknown, registry.tokens.who, text)}
    registry.tokens.revoke("acme", registry.tokens.who(other).token_id)
    for wrong in (other, "", "sh_", text + "x", text[:-1], "\udc80", "x" * 100_000):
        said.add(refusal(Unknown, registry.tokens.who, wrong))
    assert said == {"no valid token was given"}


def test_a_revoked_token_is_unknown_after_a_restart(registry, store, clock):
    text = registry.tokens.add("acme", [Scope.INVOKE])
    kept = registry.tokens.add("acme", [Scope.INVOKE])
    registry.tokens.revoke("acme", token_id(digest_of(text)))
    for one in (registry, again(store, clock)):
        with pytest.raises(Unknown):
            one.tokens.who(text)
        assert one.tokens.who(kept).tenant == "acme"
        assert [token.id for token in one.tokens.of("acme")] == [token_id(digest_of(kept))]
        with pytest.raises(Missing):
            one.tokens.revoke("acme", token_id(digest_of(text)))


@pytest.mark.parametrize("label", ["a\nb", "x" * 201, "\0", "\x1b[31m"])
def test_a_label_that_could_forge_a_line_is_refused(registry, label):
    with pytest.raises(Invalid, match="a label has at most 200"):
        registry.tokens.add("acme", [Scope.INVOKE], label)


def test_a_token_has_a_scope_and_a_tenant(registry):
    with pytest.raises(Invalid, match="good for nothing"):
        registry.tokens.add("acme", [])
    with pytest.raises(Missing):
        registry.tokens.add("other", [Scope.INVOKE])
    assert registry.tokens.of("acme") == []


def test_the_first_start_makes_an_admin_token_and_the_next_does_not(registry, store, clock):
    text = ensure_admin(registry)
    assert is_token(text)
    assert registry.tokens.who(text) == Principal(
        OPERATOR, frozenset(Scope), token_id(digest_of(text))
    )
    assert ensure_admin(registry) is None
    assert ensure_admin(again(store, clock)) is None


def test_an_admin_token_that_is_given_is_the_one(registry, store, clock):
    text, _ = new_token()
    assert ensure_admin(registry, text) is None
    assert registry.tokens.who(text).scopes == frozenset(Scope)
    assert ensure_admin(again(store, clock), text) is None
    assert len(registry.tokens.of(OPERATOR)) == 1
    other, _ = new_token()  # whoever has lost the first one comes in again
    assert ensure_admin(registry, other) is None
    assert registry.tokens.who(other).tenant == registry.tokens.who(text).tenant
    registry.tokens.revoke(OPERATOR, token_id(digest_of(text)))
    with pytest.raises(ConfigError, match="is revoked: give another"):
        ensure_admin(again(store, clock), text)
    with pytest.raises(ConfigError, match="cannot be one") as caught:
        ensure_admin(registry, "hunter2")
    assert "hunter2" not in str(caught.value)


def test_an_expired_admin_token_does_not_lock_the_operator_out(registry, clock):
    registry.tokens.add("acme", [Scope.ADMIN], expires=1001.0)
    assert ensure_admin(registry) is None
    clock.now = 1001.0
    assert is_token(ensure_admin(registry) or "")


# ---- versions ----


def test_versions_count_up_and_latest_is_the_newest_that_is_ready(registry):
    upload(registry, 1, ready=False)
    with pytest.raises(NotReady, match="no version of wc is ready"):
        registry.plugins.resolve("acme", "wc")
    with pytest.raises(NotReady, match="wc 1 is being compiled"):
        registry.plugins.resolve("acme", "wc", 1)
    registry.plugins.mark_ready(registry.plugins.version("acme", "wc", 1))
    upload(registry, 2, ready=False)
    assert registry.plugins.resolve("acme", "wc").number == 1
    registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 2), "it has no memory")
    upload(registry, 3)
    assert registry.plugins.resolve("acme", "wc", "latest").number == 3
    assert registry.plugins.resolve("acme", "wc", "1").number == 1
    with pytest.raises(NotReady, match="wc 2 could not be compiled: it has no memory"):
        registry.plugins.resolve("acme", "wc", "2")


@pytest.mark.parametrize(
    "ref", ["0", "01", "-1", "4", "²", "9" * 50, "9" * 5000, "live", "", "../1"]
)
def test_a_reference_to_nothing_is_missing(registry, ref):
    upload(registry, 1)
    with pytest.raises(Missing) as caught:
        registry.plugins.resolve("acme", "wc", ref)
    assert len(str(caught.value)) < 200


def test_a_state_is_final(registry):
    upload(registry, 1)
    upload(registry, 2, ready=False)
    registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 2), "why")
    assert registry.plugins.mark_ready(registry.plugins.version("acme", "wc", 1)).state == "ready"
    assert (
        registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 2), "again").error
        == "why"
    )
    with pytest.raises(Conflict, match="wc 1 is ready already"):
        registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 1), "")
    with pytest.raises(Conflict, match="wc 2 is failed already"):
        registry.plugins.mark_ready(registry.plugins.version("acme", "wc", 2))
    with pytest.raises(Missing):
        registry.plugins.mark_ready(registry.plugins.version("acme", "wc", 3))


def test_a_number_is_not_given_twice(registry, store, clock):
    upload(registry, 1)
    upload(registry, 2)
    registry.plugins.remove_version("acme", "wc", 2)
    registry.plugins.remove_version("acme", "wc", 1)
    assert again(store, clock).plugins.of("acme")[0].next_number == 3
    with pytest.raises(Missing, match="wc has no version"):
        registry.plugins.resolve("acme", "wc")
    upload(again(store, clock), 3)


def test_a_version_needs_a_module_that_is_there(registry):
    digest, size = registry.blobs.put([b"x"], 1)
    registry.blobs.sweep(set())
    with pytest.raises(Conflict, match="upload it again"):
        registry.plugins.add_version("acme", "wc", digest, size)
    assert registry.plugins.of("acme") == []


def test_what_was_not_compiled_before_a_restart_is_listed_after_it(registry, store, clock):
    settings = VersionSettings(warm="init")
    digest, size = registry.blobs.put([b"x"], 1)
    one = registry.plugins.add_version("acme", "wc", digest, size, settings)
    upload(registry, 2)
    assert again(store, clock).plugins.unfinished() == registry.plugins.unfinished() == [one]
    assert one.settings == settings


def test_a_tenant_may_have_so_much_and_no_more(store, clock):
    bounds = Bounds(plugins=2, versions=2, aliases=1, storage_bytes=10)
    registry = Registry(store, bounds, clock)
    registry.tenants.add("acme")
    registry.tenants.add("other")
    upload(registry, 1, module=b"123")
    upload(registry, 2, module=b"123")
    with pytest.raises(TooMany, match="wc has 2 versions, the most it may have: remove one"):
        upload(registry, module=b"1")
    upload(registry, 1, plugin="b", module=b"123")
    with pytest.raises(
        TooMany, match="2 bytes and the 9 that are stored are above the limit of 10"
    ):
        upload(registry, plugin="b", module=b"12")
    with pytest.raises(TooMany, match="there are 2 plugins, which is the most there may be"):
        upload(registry, plugin="c", module=b"1")
    registry.aliases.set("acme", "wc", "live", 1)
    registry.aliases.set("acme", "wc", "live", 2)
    with pytest.raises(TooMany, match="wc has 1 aliases"):
        registry.aliases.set("acme", "wc", "test", 1)
    upload(registry, 1, tenant="other", module=b"1234567890")
    registry.plugins.remove_version("acme", "wc", 1)
    upload(registry, 3, module=b"1234")


# ---- aliases ----


def test_an_alias_is_switched_and_rolled_back(registry, store, clock):
    for number in (1, 2, 3):
        upload(registry, number)
    assert registry.aliases.set("acme", "wc", "live", 1) == Alias("live", 1, None)
    with pytest.raises(Conflict, match="there is no version that 'live' named before"):
        registry.aliases.roll_back("acme", "wc", "live")
    assert registry.aliases.set("acme", "wc", "live", 2) == Alias("live", 2, 1)
    assert registry.aliases.set("acme", "wc", "live", 2) == Alias("live", 2, 1)  # a retry
    assert registry.plugins.resolve("acme", "wc", "live").number == 2
    assert registry.aliases.roll_back("acme", "wc", "live") == Alias("live", 1, 2)
    assert again(store, clock).plugins.resolve("acme", "wc", "live").number == 1
    assert registry.aliases.roll_back("acme", "wc", "live") == Alias("live", 2, 1)
    registry.plugins.remove_version("acme", "wc", 1)
    for one in (registry, again(store, clock)):
        with pytest.raises(Conflict, match="named before"):
            one.aliases.roll_back("acme", "wc", "live")


def test_an_alias_names_only_what_is_ready(registry):
    upload(registry, 1, ready=False)
    with pytest.raises(NotReady, match="wc 1 is compiling: an alias names what is ready"):
        registry.aliases.set("acme", "wc", "live", 1)
    registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 1), "")
    with pytest.raises(NotReady, match="failed"):
        registry.aliases.set("acme", "wc", "live", 1)
    with pytest.raises(Missing):
        registry.aliases.set("acme", "wc", "live", 2)
    with pytest.raises(Missing):
        registry.aliases.roll_back("acme", "wc", "live")


@pytest.mark.parametrize("name", ["latest", "7", "007"])
def test_an_alias_is_not_called_as_what_means_a_version(registry, name):
    upload(registry, 1)
    with pytest.raises(Invalid, match="cannot be an alias: it means a version already"):
        registry.aliases.set("acme", "wc", name, 1)


def test_what_an_alias_names_is_not_removed(registry):
    upload(registry, 1)
    registry.aliases.set("acme", "wc", "live", 1)
    with pytest.raises(Conflict, match="wc 1 is what 'live' names: switch that first"):
        registry.plugins.remove_version("acme", "wc", 1)
    registry.aliases.remove("acme", "wc", "live")
    registry.plugins.remove_version("acme", "wc", 1)
    with pytest.raises(Missing):
        registry.aliases.remove("acme", "wc", "live")


# ---- modules ----


def test_a_module_stays_as_long_as_some_version_of_some_tenant_has_it(registry, store, clock):
    registry.tenants.add("other")
    mine, theirs = upload(registry), upload(registry, tenant="other")
    assert mine.digest == theirs.digest
    registry.plugins.remove_version("acme", "wc", 1)
    assert again(store, clock).blobs.read(theirs.digest) == b"module"
    registry.plugins.remove_version("other", "wc", 1)
    assert registry.sweep() == 0  # somebody may have just uploaded it again
    assert mine.digest in registry.blobs
    os.utime(registry.blobs.folder / mine.digest, (time.time() - 4000,) * 2)
    assert registry.sweep() == 1
    assert mine.digest not in registry.blobs


def test_a_start_sweeps_what_nothing_names(registry, store, clock):
    version = upload(registry)
    registry.blobs.put([b"orphan"], 10)
    (registry.blobs.folder / "x.part").touch()
    again(store, clock)
    assert os.listdir(registry.blobs.folder) == [version.digest]


# ---- answers ----

ANSWER = Answer(200, "application/json", b"42")


def test_an_answer_is_given_again_for_its_time(registry, store, clock):
    assert registry.answers.recall("acme", "k", "f") is None
    registry.answers.remember("acme", "k", "f", ANSWER, for_s=100)
    for one in (registry, again(store, clock)):
        assert one.answers.recall("acme", "k", "f") == ANSWER
        with pytest.raises(Conflict, match="was used for another request"):
            one.answers.recall("acme", "k", "g")
        with pytest.raises(Conflict, match="was used for another request"):
            one.answers.remember("acme", "k", "g", ANSWER)
    registry.answers.remember("acme", "k", "f", Answer(500, "", b""))  # the first one stands
    assert registry.answers.recall("acme", "k", "f") == ANSWER
    clock.now += 100
    assert registry.answers.recall("acme", "k", "f") is None
    registry.answers.remember("acme", "k", "g", ANSWER)
    assert registry.answers.recall("acme", "k", "g") == ANSWER


def test_keys_of_two_tenants_do_not_meet(registry):
    registry.tenants.add("other")
    registry.answers.remember("acme", "k", "f", ANSWER)
    assert registry.answers.recall("other", "k", "g") is None
    registry.answers.remember("other", "k", "g", Answer(201, "", b""))
    assert registry.answers.recall("acme", "k", "f") == ANSWER


def test_the_oldest_answers_make_room(store, clock):
    registry = Registry(store, Bounds(answers=3, answer_bytes=10), clock)
    registry.tenants.add("acme")
    registry.tenants.add("other")
    registry.answers.remember("other", "k", "f", Answer(200, "", b"1234567890"))

    def kept(one: Registry) -> str:
        return "".join(key for key in "abcdefg" if one.answers.recall("acme", key, key))

    for key in "abcd":
        clock.now += 1
        registry.answers.remember("acme", key, key, Answer(200, "", b"12"))
    assert kept(registry) == "bcd"
    clock.now += 1
    registry.answers.remember("acme", "e", "e", Answer(200, "", b"1234567"))
    assert kept(registry) == "de"
    assert kept(again(store, clock)) == "de"
    with pytest.raises(TooLarge, match="an answer of 11 bytes is not kept"):
        registry.answers.remember("acme", "f", "f", Answer(200, "", b"12345678901"))
    assert registry.answers.recall("other", "k", "f") is not None
    assert same(registry, again(store, clock))


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 256])
def test_some_keys_are_refused(registry, key):
    with pytest.raises(Invalid, match="an idempotency key has 1 to 255"):
        registry.answers.remember("acme", key, "f", ANSWER)
    with pytest.raises(Invalid, match="an idempotency key has 1 to 255"):
        registry.answers.recall("acme", key, "f")


# ---- audit ----


def test_the_audit_log_says_who_did_what(registry, store, clock):
    who = Principal("acme", frozenset([Scope.DEPLOY]), "t1")
    other = Principal("other", frozenset([Scope.DEPLOY]), "t2")
    registry.audit.change(who, "alias.set", "wc/live", lambda: None)
    registry.audit.change(other, "alias.set", "wc/live", lambda: None)
    clock.now -= 100  # a clock that is put back
    registry = again(store, clock)
    upload(registry, 1)
    registry.aliases.set("acme", "wc", "live", 1)
    with pytest.raises(Conflict):
        registry.audit.change(
            who, "version.remove", "wc/1", lambda: registry.plugins.remove_version("acme", "wc", 1)
        )
    mine = registry.audit.log("acme")
    assert [(e.action, e.subject, e.outcome, e.token_id) for e in mine] == [
        ("version.remove", "wc/1", "conflict", "t1"),
        ("alias.set", "wc/live", "done", "t1"),
    ]
    assert len({entry.at_ns for entry in registry.audit.log()}) == 3
    assert mine[0].at_ns > registry.audit.log("other")[0].at_ns
    assert registry.audit.log("acme", 1) == mine[:1]
    assert registry.audit.log("acme", 1, before_ns=mine[0].at_ns) == mine[1:]
    registry.audit.change(who, "x" * 1000, "\udc80", lambda: None)
    [entry] = registry.audit.log("acme", 1)
    assert (entry.action, entry.subject) == ("x" * 200, "?")


def test_a_change_is_in_one_transaction_with_what_the_audit_log_says_of_it(tmp_path, clock):
    done: list[str] = []
    with Store(tmp_path, done.append) as store:
        registry = Registry(store, now=clock)
        who = Principal("acme", frozenset(), "t")
        for change in (
            lambda: registry.tenants.add("acme"),
            lambda: registry.tokens.add("acme", [Scope.INVOKE]),
            lambda: registry.tenants.update("acme", Quotas(guests=1)),
        ):
            done.clear()
            registry.audit.change(who, "a", "s", change)
            assert done.count("store.commit") == 1
        with pytest.raises(ZeroDivisionError):  # nothing was changed, and the next is its own
            registry.audit.change(who, "a", "s", lambda: 1 / 0)
        registry.tokens.add("acme", [Scope.INVOKE])
        assert len(registry.audit.log()) == 3


def test_refusals_that_are_alike_are_one_entry(registry, clock):
    text = registry.tokens.add("acme", [Scope.INVOKE], expires=clock.now + 5)
    revoked = registry.tokens.add("acme", [Scope.INVOKE])
    ids = [registry.tokens.who(text).token_id, registry.tokens.who(revoked).token_id]
    registry.tokens.revoke("acme", ids[1])
    clock.now += 10
    assert [registry.tokens.known_once(t) for t in (text, revoked, new_token()[0], "")] == [
        *ids,
        "",
        "",
    ]
    refusals = Refusals()
    for peer in range(1000):
        refusals.note(Refusal("unknown", "", "", f"10.0.0.{peer % 200}"))
    for _ in range(500):
        refusals.note(Refusal("denied", "acme", "t", "10.0.0.1"))
    registry.audit.refuse(refusals.take())
    registry.audit.refuse(refusals.take())  # none
    entries = registry.audit.log()
    assert len(entries) == 66
    assert refusals.total == {"unknown": 1000, "denied": 500}
    counts = [int(entry.subject.rpartition(" x")[2]) for entry in entries]
    assert sum(counts) == 1500
    assert {(e.subject, e.outcome) for e in entries} >= {
        ("10.0.0.7 x5", "unknown"),
        ("others x680", "unknown"),
        ("others x500", "denied"),
    }


# ---- failures of the disk, readers in other threads ----


def test_what_could_not_be_written_is_not_known_either(tmp_path, clock):
    full = False

    def step(name):
        if full and name in ("store.commit", "blob.rename"):
            raise OSError(28, "No space left on device")

    with Store(tmp_path, step) as store:
        registry = Registry(store, now=clock)
        registry.tenants.add("acme")
        token = registry.tokens.add("acme", [Scope.INVOKE])
        version = upload(registry, 1)
        upload(registry, 2, ready=False)
        registry.aliases.set("acme", "wc", "live", 1)
        before = again(store, clock)
        full = True
        for change in (
            lambda: registry.tenants.add("other"),
            lambda: registry.tenants.update("acme", Quotas(guests=1)),
            lambda: registry.tokens.add("acme", [Scope.INVOKE]),
            lambda: registry.tokens.revoke("acme", registry.tokens.who(token).token_id),
            lambda: registry.plugins.add_version("acme", "wc", version.digest, 1),
            lambda: registry.plugins.add_version("acme", "new", version.digest, 1),
            lambda: registry.plugins.mark_ready(registry.plugins.version("acme", "wc", 2)),
            lambda: registry.plugins.mark_failed(registry.plugins.version("acme", "wc", 2), ""),
            lambda: registry.plugins.remove_version("acme", "wc", 2),
            lambda: registry.aliases.set("acme", "wc", "test", 1),
            lambda: registry.aliases.remove("acme", "wc", "live"),
            lambda: registry.answers.remember("acme", "k", "f", ANSWER),
            lambda: registry.blobs.put([b"other"], 10),
        ):
            with pytest.raises(OSError, match="No space left"):
                change()
            assert same(registry, before)
        full = False
        assert same(registry, again(store, clock))
        upload(registry, 3)


def test_a_reader_never_sees_half_a_change(registry):
    """An alias is switched and versions come and go, while others resolve it."""
    for number in (1, 2):
        upload(registry, number)
    registry.aliases.set("acme", "wc", "live", 1)
    stop = threading.Event()
    problems: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                if registry.plugins.resolve("acme", "wc", "live").number not in (1, 2):
                    problems.append("another version")
                if registry.plugins.resolve("acme", "wc").state != "ready":
                    problems.append("not ready")
                (
                    registry.tokens.of("acme"),
                    registry.plugins.of("acme"),
                    registry.plugins.unfinished(),
                )
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        registry.aliases.set("acme", "wc", "live", 1 + turn % 2)
        version = upload(registry, ready=False)
        registry.tokens.add("acme", [Scope.INVOKE])
        registry.plugins.remove_version("acme", "wc", version.number)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_changes_of_many_threads_are_made_one_at_a_time(registry, store, clock):
    numbers: list[int] = []
    start = threading.Barrier(4)

    def change() -> None:
        start.wait()
        for _ in range(10):
            numbers.append(upload(registry).number)

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))
    assert same(registry, again(store, clock))


# ---- isolation ----


def test_what_another_tenant_has_is_missing_in_the_words_of_what_nobody_has(registry):
    """Each question is asked of a tenant that has it not, where another has it and where nobody does."""
    registry.tenants.add("victim")
    for number in (1, 2):
        upload(registry, number, tenant="victim", plugin="secret")
    registry.aliases.set("victim", "secret", "live", 1)
    registry.aliases.set("victim", "secret", "live", 2)
    token = registry.tokens.add("victim", [Scope.INVOKE], "label")
    victims = registry.tokens.who(token).token_id
    registry.answers.remember("victim", "key", "f", ANSWER)
    registry.audit.change(registry.tokens.who(token), "a", "s", lambda: None)

    def answers(plugin: str, token_id: str, key: str) -> list[object]:
        asked = [
            lambda: registry.plugins.find("acme", plugin),
            lambda: registry.plugins.version("acme", plugin, 1),
            lambda: registry.plugins.resolve("acme", plugin),
            lambda: registry.plugins.resolve("acme", plugin, "live"),
            lambda: registry.plugins.resolve("acme", plugin, 1),
            lambda: registry.plugins.mark_ready(registry.plugins.version("acme", plugin, 1)),
            lambda: registry.plugins.mark_failed(registry.plugins.version("acme", plugin, 1), ""),
            lambda: registry.plugins.remove_version("acme", plugin, 1),
            lambda: registry.aliases.set("acme", plugin, "live", 1),
            lambda: registry.aliases.roll_back("acme", plugin, "live"),
            lambda: registry.aliases.remove("acme", plugin, "live"),
            lambda: registry.tokens.revoke("acme", token_id),
            lambda: registry.answers.recall("acme", key, "f"),
            lambda: registry.tokens.of("acme"),
            lambda: registry.plugins.of("acme"),
            lambda: registry.audit.log("acme"),
        ]
        found: list[object] = []
        for ask in asked:
            try:
                found.append(ask())
            except Problem as problem:
                said = re.sub(f"{plugin}|{token_id}", "NAME", problem.detail)
                found.append((type(problem), said, problem.facts, problem.retry_after_s))
        return found

    before = answers("nothing", "0" * 16, "nokey")
    assert answers("secret", victims, "key") == before
    assert (
        registry.plugins.resolve("victim", "secret", "live").number == 2
    )  # and nothing has happened to it
    assert registry.tokens.who(token).tenant == "victim"
    assert upload(registry, 1, plugin="secret").number == 1  # numbers count for each alone
    assert [t.label for t in registry.tokens.of("victim")] == ["label"]
