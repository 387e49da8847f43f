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
    registry.add_tenant("acme")
    return registry


def upload(registry, number=None, *, tenant="acme", plugin="wc", module=b"module", ready=True):
    """Add a version, and see that it has the number that is expected."""
    digest, size = registry.blobs.put([module], 1 << 20)
    version = registry.add_version(tenant, plugin, digest, size)
    if number is not None:
        assert version.number == number
    return (
        registry.mark_ready(registry.version(tenant, plugin, version.number)) if ready else version
    )


def refusal(problem: type[Problem], call, *arguments) -> str:
    with pytest.raises(problem) as caught:
        call(*arguments)
    return caught.value.detail


def again(store, clock) -> Registry:
    """What a restart would know."""
    return Registry(store, now=clock)


def same(one: Registry, other: Registry) -> bool:
    names = ("_tenants", "_tokens", "_revoked", "_plugins", "_known", "_last_audit_ns")
    return all(getattr(one, name) == getattr(other, name) for name in names)


# ---- tenants ----


def test_a_tenant_has_quotas_that_can_be_replaced(registry, store, clock):
    assert registry.tenant("acme") == Tenant("acme", Quotas())
    registry.update_tenant("acme", Quotas(guests=5))
    assert registry.tenant("acme").quotas == Quotas(guests=5)
    registry.update_tenant("acme", Quotas(cpus=2))
    assert again(store, clock).tenants() == [Tenant("acme", Quotas(cpus=2))]
    with pytest.raises(Conflict, match="there is a tenant 'acme' already"):
        registry.add_tenant("acme")
    with pytest.raises(Missing, match="there is no tenant 'other'"):
        registry.update_tenant("other", Quotas())


@pytest.mark.parametrize(
    "name",
    ["", "A", "a/b", ".a", "a.", "-a", "a" * 64, "a b", "ä", "a\n", "a\0", "..", "\udc80", "٣"],
)
def test_some_names_are_refused(registry, name):
    with pytest.raises(Invalid, match="cannot be the name of a tenant"):
        registry.add_tenant(name)
    with pytest.raises(Invalid, match="cannot be the name of a plugin"):
        upload(registry, plugin=name)
    upload(registry, plugin="wc")
    with pytest.raises(Invalid, match="cannot be the name of an alias"):
        registry.set_alias("acme", "wc", name, 1)
    assert len(refusal(Invalid, registry.add_tenant, name)) < 300


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "word-count_2.v1"])
def test_other_names_are_taken(registry, name):
    registry.add_tenant(name)
    upload(registry, 1, tenant=name, plugin=name)
    assert registry.resolve(name, name).number == 1


# ---- tokens ----


def test_a_token_is_known_until_it_expires_or_is_revoked(registry, clock):
    text = registry.add_token("acme", [Scope.DEPLOY, Scope.INVOKE], "ci", expires=1500.0)
    other = registry.add_token("acme", [Scope.INVOKE])
    assert registry.who(text) == Principal(
        "acme", frozenset([Scope.DEPLOY, Scope.INVOKE]), token_id(digest_of(text))
    )
    clock.now = 1499.9
    registry.who(text)
    clock.now = 1500.0
    said = {refusal(Unknown, registry.who, text)}
    registry.revoke_token("acme", registry.who(other).token_id)
    for wrong in (other, "", "sh_", text + "x", text[:-1], "\udc80", "x" * 100_000):
        said.add(refusal(Unknown, registry.who, wrong))
    assert said == {"no valid token was given"}


def test_a_revoked_token_is_unknown_after_a_restart(registry, store, clock):
    text = registry.add_token("acme", [Scope.INVOKE])
    kept = registry.add_token("acme", [Scope.INVOKE])
    registry.revoke_token("acme", token_id(digest_of(text)))
    for one in (registry, again(store, clock)):
        with pytest.raises(Unknown):
            one.who(text)
        assert one.who(kept).tenant == "acme"
        assert [token.id for token in one.tokens("acme")] == [token_id(digest_of(kept))]
        with pytest.raises(Missing):
            one.revoke_token("acme", token_id(digest_of(text)))


@pytest.mark.parametrize("label", ["a\nb", "x" * 201, "\0", "\x1b[31m"])
def test_a_label_that_could_forge_a_line_is_refused(registry, label):
    with pytest.raises(Invalid, match="a label has at most 200"):
        registry.add_token("acme", [Scope.INVOKE], label)


def test_a_token_has_a_scope_and_a_tenant(registry):
    with pytest.raises(Invalid, match="good for nothing"):
        registry.add_token("acme", [])
    with pytest.raises(Missing):
        registry.add_token("other", [Scope.INVOKE])
    assert registry.tokens("acme") == []


def test_the_first_start_makes_an_admin_token_and_the_next_does_not(registry, store, clock):
    text = registry.ensure_admin()
    assert is_token(text)
    assert registry.who(text) == Principal(OPERATOR, frozenset(Scope), token_id(digest_of(text)))
    assert registry.ensure_admin() is None
    assert again(store, clock).ensure_admin() is None


def test_an_admin_token_that_is_given_is_the_one(registry, store, clock):
    text, _ = new_token()
    assert registry.ensure_admin(text) is None
    assert registry.who(text).scopes == frozenset(Scope)
    assert again(store, clock).ensure_admin(text) is None
    assert len(registry.tokens(OPERATOR)) == 1
    other, _ = new_token()  # whoever has lost the first one comes in again
    assert registry.ensure_admin(other) is None
    assert registry.who(other).tenant == registry.who(text).tenant
    registry.revoke_token(OPERATOR, token_id(digest_of(text)))
    with pytest.raises(ConfigError, match="is revoked: give another"):
        again(store, clock).ensure_admin(text)
    with pytest.raises(ConfigError, match="cannot be one") as caught:
        registry.ensure_admin("hunter2")
    assert "hunter2" not in str(caught.value)


def test_an_expired_admin_token_does_not_lock_the_operator_out(registry, clock):
    registry.add_token("acme", [Scope.ADMIN], expires=1001.0)
    assert registry.ensure_admin() is None
    clock.now = 1001.0
    assert is_token(registry.ensure_admin() or "")


# ---- versions ----


def test_versions_count_up_and_latest_is_the_newest_that_is_ready(registry):
    upload(registry, 1, ready=False)
    with pytest.raises(NotReady, match="no version of wc is ready"):
        registry.resolve("acme", "wc")
    with pytest.raises(NotReady, match="wc 1 is being compiled"):
        registry.resolve("acme", "wc", 1)
    registry.mark_ready(registry.version("acme", "wc", 1))
    upload(registry, 2, ready=False)
    assert registry.resolve("acme", "wc").number == 1
    registry.mark_failed(registry.version("acme", "wc", 2), "it has no memory")
    upload(registry, 3)
    assert registry.resolve("acme", "wc", "latest").number == 3
    assert registry.resolve("acme", "wc", "1").number == 1
    with pytest.raises(NotReady, match="wc 2 could not be compiled: it has no memory"):
        registry.resolve("acme", "wc", "2")


@pytest.mark.parametrize(
    "ref", ["0", "01", "-1", "4", "²", "9" * 50, "9" * 5000, "live", "", "../1"]
)
def test_a_reference_to_nothing_is_missing(registry, ref):
    upload(registry, 1)
    with pytest.raises(Missing) as caught:
        registry.resolve("acme", "wc", ref)
    assert len(str(caught.value)) < 200


def test_a_state_is_final(registry):
    upload(registry, 1)
    upload(registry, 2, ready=False)
    registry.mark_failed(registry.version("acme", "wc", 2), "why")
    assert registry.mark_ready(registry.version("acme", "wc", 1)).state == "ready"
    assert registry.mark_failed(registry.version("acme", "wc", 2), "again").error == "why"
    with pytest.raises(Conflict, match="wc 1 is ready already"):
        registry.mark_failed(registry.version("acme", "wc", 1), "")
    with pytest.raises(Conflict, match="wc 2 is failed already"):
        registry.mark_ready(registry.version("acme", "wc", 2))
    with pytest.raises(Missing):
        registry.mark_ready(registry.version("acme", "wc", 3))


def test_a_number_is_not_given_twice(registry, store, clock):
    upload(registry, 1)
    upload(registry, 2)
    registry.remove_version("acme", "wc", 2)
    registry.remove_version("acme", "wc", 1)
    assert again(store, clock).plugins("acme")[0].next_number == 3
    with pytest.raises(Missing, match="wc has no version"):
        registry.resolve("acme", "wc")
    upload(again(store, clock), 3)


def test_a_version_needs_a_module_that_is_there(registry):
    digest, size = registry.blobs.put([b"x"], 1)
    registry.blobs.sweep(set())
    with pytest.raises(Conflict, match="upload it again"):
        registry.add_version("acme", "wc", digest, size)
    assert registry.plugins("acme") == []


def test_what_was_not_compiled_before_a_restart_is_listed_after_it(registry, store, clock):
    settings = VersionSettings(warm="init")
    digest, size = registry.blobs.put([b"x"], 1)
    one = registry.add_version("acme", "wc", digest, size, settings)
    upload(registry, 2)
    assert again(store, clock).unfinished() == registry.unfinished() == [one]
    assert one.settings == settings


def test_a_tenant_may_have_so_much_and_no_more(store, clock):
    bounds = Bounds(plugins=2, versions=2, aliases=1, storage_bytes=10)
    registry = Registry(store, bounds, clock)
    registry.add_tenant("acme")
    registry.add_tenant("other")
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
    registry.set_alias("acme", "wc", "live", 1)
    registry.set_alias("acme", "wc", "live", 2)
    with pytest.raises(TooMany, match="wc has 1 aliases"):
        registry.set_alias("acme", "wc", "test", 1)
    upload(registry, 1, tenant="other", module=b"1234567890")
    registry.remove_version("acme", "wc", 1)
    upload(registry, 3, module=b"1234")


# ---- aliases ----


def test_an_alias_is_switched_and_rolled_back(registry, store, clock):
    for number in (1, 2, 3):
        upload(registry, number)
    assert registry.set_alias("acme", "wc", "live", 1) == Alias("live", 1, None)
    with pytest.raises(Conflict, match="there is no version that 'live' named before"):
        registry.roll_back("acme", "wc", "live")
    assert registry.set_alias("acme", "wc", "live", 2) == Alias("live", 2, 1)
    assert registry.set_alias("acme", "wc", "live", 2) == Alias("live", 2, 1)  # a retry
    assert registry.resolve("acme", "wc", "live").number == 2
    assert registry.roll_back("acme", "wc", "live") == Alias("live", 1, 2)
    assert again(store, clock).resolve("acme", "wc", "live").number == 1
    assert registry.roll_back("acme", "wc", "live") == Alias("live", 2, 1)
    registry.remove_version("acme", "wc", 1)
    for one in (registry, again(store, clock)):
        with pytest.raises(Conflict, match="named before"):
            one.roll_back("acme", "wc", "live")


def test_an_alias_names_only_what_is_ready(registry):
    upload(registry, 1, ready=False)
    with pytest.raises(NotReady, match="wc 1 is compiling: an alias names what is ready"):
        registry.set_alias("acme", "wc", "live", 1)
    registry.mark_failed(registry.version("acme", "wc", 1), "")
    with pytest.raises(NotReady, match="failed"):
        registry.set_alias("acme", "wc", "live", 1)
    with pytest.raises(Missing):
        registry.set_alias("acme", "wc", "live", 2)
    with pytest.raises(Missing):
        registry.roll_back("acme", "wc", "live")


@pytest.mark.parametrize("name", ["latest", "7", "007"])
def test_an_alias_is_not_called_as_what_means_a_version(registry, name):
    upload(registry, 1)
    with pytest.raises(Invalid, match="cannot be an alias: it means a version already"):
        registry.set_alias("acme", "wc", name, 1)


def test_what_an_alias_names_is_not_removed(registry):
    upload(registry, 1)
    registry.set_alias("acme", "wc", "live", 1)
    with pytest.raises(Conflict, match="wc 1 is what 'live' names: switch that first"):
        registry.remove_version("acme", "wc", 1)
    registry.remove_alias("acme", "wc", "live")
    registry.remove_version("acme", "wc", 1)
    with pytest.raises(Missing):
        registry.remove_alias("acme", "wc", "live")


# ---- modules ----


def test_a_module_stays_as_long_as_some_version_of_some_tenant_has_it(registry, store, clock):
    registry.add_tenant("other")
    mine, theirs = upload(registry), upload(registry, tenant="other")
    assert mine.digest == theirs.digest
    registry.remove_version("acme", "wc", 1)
    assert again(store, clock).blobs.read(theirs.digest) == b"module"
    registry.remove_version("other", "wc", 1)
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
    assert registry.recall("acme", "k", "f") is None
    registry.remember("acme", "k", "f", ANSWER, for_s=100)
    for one in (registry, again(store, clock)):
        assert one.recall("acme", "k", "f") == ANSWER
        with pytest.raises(Conflict, match="was used for another request"):
            one.recall("acme", "k", "g")
        with pytest.raises(Conflict, match="was used for another request"):
            one.remember("acme", "k", "g", ANSWER)
    registry.remember("acme", "k", "f", Answer(500, "", b""))  # the first one stands
    assert registry.recall("acme", "k", "f") == ANSWER
    clock.now += 100
    assert registry.recall("acme", "k", "f") is None
    registry.remember("acme", "k", "g", ANSWER)
    assert registry.recall("acme", "k", "g") == ANSWER


def test_keys_of_two_tenants_do_not_meet(registry):
    registry.add_tenant("other")
    registry.remember("acme", "k", "f", ANSWER)
    assert registry.recall("other", "k", "g") is None
    registry.remember("other", "k", "g", Answer(201, "", b""))
    assert registry.recall("acme", "k", "f") == ANSWER


def test_the_oldest_answers_make_room(store, clock):
    registry = Registry(store, Bounds(answers=3, answer_bytes=10), clock)
    registry.add_tenant("acme")
    registry.add_tenant("other")
    registry.remember("other", "k", "f", Answer(200, "", b"1234567890"))

    def kept(one: Registry) -> str:
        return "".join(key for key in "abcdefg" if one.recall("acme", key, key))

    for key in "abcd":
        clock.now += 1
        registry.remember("acme", key, key, Answer(200, "", b"12"))
    assert kept(registry) == "bcd"
    clock.now += 1
    registry.remember("acme", "e", "e", Answer(200, "", b"1234567"))
    assert kept(registry) == "de"
    assert kept(again(store, clock)) == "de"
    with pytest.raises(TooLarge, match="an answer of 11 bytes is not kept"):
        registry.remember("acme", "f", "f", Answer(200, "", b"12345678901"))
    assert registry.recall("other", "k", "f") is not None
    assert same(registry, again(store, clock))


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 256])
def test_some_keys_are_refused(registry, key):
    with pytest.raises(Invalid, match="an idempotency key has 1 to 255"):
        registry.remember("acme", key, "f", ANSWER)
    with pytest.raises(Invalid, match="an idempotency key has 1 to 255"):
        registry.recall("acme", key, "f")


# ---- audit ----


def test_the_audit_log_says_who_did_what(registry, store, clock):
    who = Principal("acme", frozenset([Scope.DEPLOY]), "t1")
    other = Principal("other", frozenset([Scope.DEPLOY]), "t2")
    registry.change(who, "alias.set", "wc/live", lambda: None)
    registry.change(other, "alias.set", "wc/live", lambda: None)
    clock.now -= 100  # a clock that is put back
    registry = again(store, clock)
    upload(registry, 1)
    registry.set_alias("acme", "wc", "live", 1)
    with pytest.raises(Conflict):
        registry.change(
            who, "version.remove", "wc/1", lambda: registry.remove_version("acme", "wc", 1)
        )
    mine = registry.audit_log("acme")
    assert [(e.action, e.subject, e.outcome, e.token_id) for e in mine] == [
        ("version.remove", "wc/1", "conflict", "t1"),
        ("alias.set", "wc/live", "done", "t1"),
    ]
    assert len({entry.at_ns for entry in registry.audit_log()}) == 3
    assert mine[0].at_ns > registry.audit_log("other")[0].at_ns
    assert registry.audit_log("acme", 1) == mine[:1]
    assert registry.audit_log("acme", 1, before_ns=mine[0].at_ns) == mine[1:]
    registry.change(who, "x" * 1000, "\udc80", lambda: None)
    [entry] = registry.audit_log("acme", 1)
    assert (entry.action, entry.subject) == ("x" * 200, "?")


def test_a_change_is_in_one_transaction_with_what_the_audit_log_says_of_it(tmp_path, clock):
    done: list[str] = []
    with Store(tmp_path, done.append) as store:
        registry = Registry(store, now=clock)
        who = Principal("acme", frozenset(), "t")
        for change in (
            lambda: registry.add_tenant("acme"),
            lambda: registry.add_token("acme", [Scope.INVOKE]),
            lambda: registry.update_tenant("acme", Quotas(guests=1)),
        ):
            done.clear()
            registry.change(who, "a", "s", change)
            assert done.count("store.commit") == 1
        with pytest.raises(ZeroDivisionError):  # nothing was changed, and the next is its own
            registry.change(who, "a", "s", lambda: 1 / 0)
        registry.add_token("acme", [Scope.INVOKE])
        assert len(registry.audit_log()) == 3


def test_refusals_that_are_alike_are_one_entry(registry, clock):
    text = registry.add_token("acme", [Scope.INVOKE], expires=clock.now + 5)
    revoked = registry.add_token("acme", [Scope.INVOKE])
    ids = [registry.who(text).token_id, registry.who(revoked).token_id]
    registry.revoke_token("acme", ids[1])
    clock.now += 10
    assert [registry.known_once(t) for t in (text, revoked, new_token()[0], "")] == [*ids, "", ""]
    refusals = Refusals()
    for peer in range(1000):
        refusals.note(Refusal("unknown", "", "", f"10.0.0.{peer % 200}"))
    for _ in range(500):
        refusals.note(Refusal("denied", "acme", "t", "10.0.0.1"))
    registry.audit_refusals(refusals.take())
    registry.audit_refusals(refusals.take())  # none
    entries = registry.audit_log()
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
        registry.add_tenant("acme")
        token = registry.add_token("acme", [Scope.INVOKE])
        version = upload(registry, 1)
        upload(registry, 2, ready=False)
        registry.set_alias("acme", "wc", "live", 1)
        before = again(store, clock)
        full = True
        for change in (
            lambda: registry.add_tenant("other"),
            lambda: registry.update_tenant("acme", Quotas(guests=1)),
            lambda: registry.add_token("acme", [Scope.INVOKE]),
            lambda: registry.revoke_token("acme", registry.who(token).token_id),
            lambda: registry.add_version("acme", "wc", version.digest, 1),
            lambda: registry.add_version("acme", "new", version.digest, 1),
            lambda: registry.mark_ready(registry.version("acme", "wc", 2)),
            lambda: registry.mark_failed(registry.version("acme", "wc", 2), ""),
            lambda: registry.remove_version("acme", "wc", 2),
            lambda: registry.set_alias("acme", "wc", "test", 1),
            lambda: registry.remove_alias("acme", "wc", "live"),
            lambda: registry.remember("acme", "k", "f", ANSWER),
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
    registry.set_alias("acme", "wc", "live", 1)
    stop = threading.Event()
    problems: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                if registry.resolve("acme", "wc", "live").number not in (1, 2):
                    problems.append("another version")
                if registry.resolve("acme", "wc").state != "ready":
                    problems.append("not ready")
                registry.tokens("acme"), registry.plugins("acme"), registry.unfinished()
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        registry.set_alias("acme", "wc", "live", 1 + turn % 2)
        version = upload(registry, ready=False)
        registry.add_token("acme", [Scope.INVOKE])
        registry.remove_version("acme", "wc", version.number)
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
    registry.add_tenant("victim")
    for number in (1, 2):
        upload(registry, number, tenant="victim", plugin="secret")
    registry.set_alias("victim", "secret", "live", 1)
    registry.set_alias("victim", "secret", "live", 2)
    token = registry.add_token("victim", [Scope.INVOKE], "label")
    victims = registry.who(token).token_id
    registry.remember("victim", "key", "f", ANSWER)
    registry.change(registry.who(token), "a", "s", lambda: None)

    def answers(plugin: str, token_id: str, key: str) -> list[object]:
        asked = [
            lambda: registry.plugin("acme", plugin),
            lambda: registry.version("acme", plugin, 1),
            lambda: registry.resolve("acme", plugin),
            lambda: registry.resolve("acme", plugin, "live"),
            lambda: registry.resolve("acme", plugin, 1),
            lambda: registry.mark_ready(registry.version("acme", plugin, 1)),
            lambda: registry.mark_failed(registry.version("acme", plugin, 1), ""),
            lambda: registry.remove_version("acme", plugin, 1),
            lambda: registry.set_alias("acme", plugin, "live", 1),
            lambda: registry.roll_back("acme", plugin, "live"),
            lambda: registry.remove_alias("acme", plugin, "live"),
            lambda: registry.revoke_token("acme", token_id),
            lambda: registry.recall("acme", key, "f"),
            lambda: registry.tokens("acme"),
            lambda: registry.plugins("acme"),
            lambda: registry.audit_log("acme"),
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
        registry.resolve("victim", "secret", "live").number == 2
    )  # and nothing has happened to it
    assert registry.who(token).tenant == "victim"
    assert upload(registry, 1, plugin="secret").number == 1  # numbers count for each alone
    assert [t.label for t in registry.tokens("victim")] == ["label"]
