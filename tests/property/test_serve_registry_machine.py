"""The registry against a naive model, while the machine stops at any step of any write.

A stop is what `kill -9` leaves: the folder is copied as it is at that very step, whatever was in memory is
dropped, and a new registry opens the copy. Then three things are held against the model. What was acknowledged
is there. What was under way is there as a whole or not at all. And nothing else is on the disk.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import examples

from sandhost.serve.problems import Conflict, Missing, NotReady, Problem, Unknown
from sandhost.serve.registry import Answer, Principal, Registry, Scope
from sandhost.serve.store import Store
from sandhost.tenants import Quotas

# Mostly the same ones, so that histories get long.
TENANTS = st.sampled_from(["acme"] * 5 + ["other"])
PLUGINS = st.sampled_from(["wc"] * 5 + ["sort"])
ALIASES = st.sampled_from(["live"] * 5 + ["test"])
RARELY = st.sampled_from(["sort"] * 5 + ["wc"])
NUMBERS = st.integers(1, 3)
MODULES = st.sampled_from([b"", b"one", b"two"])
KEYS = st.sampled_from(["k1", "k2"])
STOPS = st.none() | st.integers(0, 15)
"""How many steps of the disk are done before the machine stops; mostly never."""
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a sync takes no time. Processes that stop are played here, not disks."""


class Stop(BaseException):
    """The machine stops here."""


@dataclass
class Plugin:
    next_number: int = 1
    versions: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    aliases: dict[str, tuple[int, int | None]] = field(default_factory=dict)


@dataclass
class Model:
    """What must be known. Its methods raise what the registry is to raise."""

    tenants: dict[str, Quotas] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # label: tenant
    plugins: dict[tuple[str, str], Plugin] = field(default_factory=dict)
    answers: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    audit: list[tuple[str, str]] = field(default_factory=list)  # subject, outcome

    def add_tenant(self, tenant: str) -> None:
        if tenant in self.tenants:
            raise Conflict("")
        self.tenants[tenant] = Quotas()

    def update_tenant(self, tenant: str, quotas: Quotas) -> None:
        self.check(tenant)
        self.tenants[tenant] = quotas

    def check(self, tenant: str) -> None:
        if tenant not in self.tenants:
            raise Missing("")

    def add_token(self, tenant: str, label: str) -> None:
        self.check(tenant)
        self.tokens[label] = tenant

    def revoke_token(self, tenant: str, label: str) -> None:
        if self.tokens.get(label) != tenant:
            raise Missing("")
        del self.tokens[label]

    def add_version(self, tenant: str, plugin: str, module: bytes) -> None:
        self.check(tenant)
        into = self.plugins.setdefault((tenant, plugin), Plugin())
        into.versions[into.next_number] = ("compiling", module)
        into.next_number += 1

    def plugin(self, tenant: str, plugin: str) -> Plugin:
        if (tenant, plugin) not in self.plugins:
            raise Missing("")
        return self.plugins[tenant, plugin]

    def version(self, tenant: str, plugin: str, number: int) -> tuple[Plugin, str, bytes]:
        of = self.plugin(tenant, plugin)
        if number not in of.versions:
            raise Missing("")
        return of, *of.versions[number]

    def mark(self, tenant: str, plugin: str, number: int, state: str) -> None:
        of, before, module = self.version(tenant, plugin, number)
        if before not in ("compiling", state):
            raise Conflict("")
        of.versions[number] = (state, module)

    def remove_version(self, tenant: str, plugin: str, number: int) -> None:
        of, _, _ = self.version(tenant, plugin, number)
        if any(names == number for names, _ in of.aliases.values()):
            raise Conflict("")
        del of.versions[number]
        for name, (names, previous) in of.aliases.items():
            if previous == number:
                of.aliases[name] = (names, None)

    def remove_plugin(self, tenant: str, plugin: str) -> None:
        self.plugin(tenant, plugin)
        del self.plugins[tenant, plugin]

    def remove_tenant(self, tenant: str) -> None:
        self.check(tenant)
        del self.tenants[tenant]
        self.tokens = {label: owner for label, owner in self.tokens.items() if owner != tenant}
        self.plugins = {key: plugin for key, plugin in self.plugins.items() if key[0] != tenant}
        self.answers = {key: answer for key, answer in self.answers.items() if key[0] != tenant}

    def set_alias(self, tenant: str, plugin: str, alias: str, number: int) -> None:
        of, state, _ = self.version(tenant, plugin, number)
        if state != "ready":
            raise NotReady("")
        before = of.aliases.get(alias, (None, None))
        if before[0] != number:
            of.aliases[alias] = (number, before[0])

    def roll_back(self, tenant: str, plugin: str, alias: str) -> None:
        of = self.plugin(tenant, plugin)
        if alias not in of.aliases:
            raise Missing("")
        number, previous = of.aliases[alias]
        if previous is None:
            raise Conflict("")
        of.aliases[alias] = (previous, number)

    def remove_alias(self, tenant: str, plugin: str, alias: str) -> None:
        of = self.plugin(tenant, plugin)
        if alias not in of.aliases:
            raise Missing("")
        del of.aliases[alias]

    def remember(self, tenant: str, key: str, fingerprint: str, body: bytes) -> None:
        self.check(tenant)
        before = self.answers.setdefault((tenant, key), (fingerprint, body))
        if before[0] != fingerprint:
            raise Conflict("")


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp(prefix="sandhost-registry-", dir=IN_MEMORY))
        self.folders = 0
        self.texts: dict[str, str] = {}  # label: token
        self.labels = 0
        self.entries = 0
        self.given: dict[tuple[str, str], int] = {}  # the highest number that anybody has seen
        self.left: int | None = None
        self.dead = False

    @initialize(stop=STOPS)
    def first_start(self, stop: int | None) -> None:
        self.model = Model()
        self.folder = self.parent / "0"
        self.open(stop)
        self.registry.tenants.add("acme")
        self.model.add_tenant("acme")
        for module in (b"one", b"two"):  # histories of aliases begin here
            self.upload("acme", "wc", module, None, None, True)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.parent)

    # ---- stops ----

    def step(self, name: str) -> None:
        """Between any two steps of the disk."""
        if self.dead:
            raise Stop  # the dead do not clean up
        if self.left is None:
            return
        if self.left:
            self.left -= 1
            return
        self.dead = True
        self.folders += 1
        self.left_behind = self.parent / str(self.folders)
        shutil.copytree(self.folder, self.left_behind)
        raise Stop

    def move(self) -> None:
        """Go on with what the dead left behind."""
        shutil.rmtree(self.folder)
        self.folder, self.dead, self.left = self.left_behind, False, None

    def open(self, stop: int | None) -> None:
        """Start on the folder, again if that is stopped."""
        self.left = stop
        try:
            self.store = Store(self.folder, self.step)
            try:
                self.registry = Registry(self.store)
            except Stop:
                self.store.close()
                raise
        except Stop:
            self.move()
            self.store = Store(self.folder, self.step)
            self.registry = Registry(self.store)
        self.left = None
        self.nothing_else_is_on_the_disk()

    def do(
        self,
        stop: int | None,
        change: Callable[[Model], object],
        call: Callable[[], object],
        stop_again: int | None = None,
        *,
        audited: bool = True,
    ) -> Any:
        """Make a change in the model and in the registry; return what the registry did if it was done.

        It is made with an entry of the audit log, which is there just if the change is; a refusal has one too.
        """
        after = copy.deepcopy(self.model)
        expected: type[Problem] | None = None
        try:
            change(after)
        except Problem as problem:
            expected, after = type(problem), copy.deepcopy(self.model)
        if audited:
            self.entries += 1
            subject = str(self.entries)
            outcome = "done" if expected is None else expected("").code
            after.audit.append((subject, outcome))
            who, plain = Principal("acme", frozenset(), "t"), call
            call = lambda: self.registry.audit.change(who, "a", subject, plain)  # noqa: E731
        self.left = stop
        try:
            result = call()
        except Stop:
            self.store.close()
            self.move()
            self.open(stop_again)
            found = self.found()
            before_was = found == self.expected(self.model)
            after_was = found == self.expected(after)
            assert before_was or after_was, found
            self.model = after if after_was else self.model
            return None
        except Problem as problem:
            assert type(problem) is expected, (problem, expected)
            self.model = after
            return None
        finally:
            self.left = None
        assert expected is None, expected
        self.model = after
        return result

    # ---- what is compared ----

    def found(self) -> object:
        """All that can be asked of the registry."""
        plugins = {}
        for tenant in ("acme", "other"):
            for plugin in self.registry.plugins.of(tenant):
                versions = {
                    version.number: (version.state, self.registry.blobs.read(version.digest))
                    for version in plugin.versions.values()
                }
                aliases = {a.name: (a.number, a.previous) for a in plugin.aliases.values()}
                plugins[tenant, plugin.name] = Plugin(plugin.next_number, versions, aliases)
        return (
            {tenant.name: tenant.quotas for tenant in self.registry.tenants},
            {
                t.label: t.tenant
                for name in ("acme", "other")
                for t in self.registry.tokens.of(name)
            },
            plugins,
            {
                (tenant, key): answer.body
                for tenant in ("acme", "other")
                for key in ("k1", "k2")
                for answer in [self.recalled(tenant, key)]
                if answer is not None
            },
            [(e.subject, e.outcome) for e in reversed(self.registry.audit.log(None, 10_000))],
        )

    def recalled(self, tenant: str, key: str) -> Answer | None:
        for fingerprint in ("f", "g"):
            try:
                return self.registry.answers.recall(tenant, key, fingerprint)
            except Conflict:
                pass
        raise AssertionError("kept for neither")

    def expected(self, model: Model) -> object:
        answers = {key: body for key, (_, body) in model.answers.items()}
        return (model.tenants, model.tokens, model.plugins, answers, model.audit)

    def nothing_else_is_on_the_disk(self) -> None:
        """After a start: what is named, and no temporary file."""
        named = {
            version.digest
            for tenant in ("acme", "other")
            for plugin in self.registry.plugins.of(tenant)
            for version in plugin.versions.values()
        }
        assert set(os.listdir(self.registry.blobs.folder)) == named

    @invariant()
    def registry_and_model_know_the_same(self) -> None:
        if hasattr(self, "registry"):
            assert self.found() == self.expected(self.model)

    @invariant()
    def an_alias_names_what_is_ready_and_latest_is_the_newest(self) -> None:
        for (tenant, name), plugin in getattr(self, "model", Model()).plugins.items():
            for alias, (number, _) in plugin.aliases.items():
                version = self.registry.plugins.resolve(tenant, name, alias)
                assert (version.number, version.state) == (number, "ready")
            ready = [n for n, (state, _) in plugin.versions.items() if state == "ready"]
            if ready:
                assert self.registry.plugins.resolve(tenant, name).number == max(ready)

    @invariant()
    def tokens_are_known_until_they_are_revoked(self) -> None:
        for label, text in self.texts.items():
            try:
                assert self.registry.tokens.who(text).tenant == self.model.tokens[label]
            except Unknown:
                assert label not in self.model.tokens

    # ---- what may happen ----

    @rule(tenant=TENANTS, stop=STOPS, again=STOPS)
    def add_tenant(self, tenant, stop, again):
        self.do(
            stop, lambda m: m.add_tenant(tenant), lambda: self.registry.tenants.add(tenant), again
        )

    @rule(tenant=TENANTS, guests=st.integers(0, 3), stop=STOPS)
    def update_tenant(self, tenant, guests, stop):
        quotas = Quotas(guests=guests)
        self.do(
            stop,
            lambda m: m.update_tenant(tenant, quotas),
            lambda: self.registry.tenants.update(tenant, quotas),
        )

    @rule(tenant=TENANTS, stop=STOPS)
    def add_token(self, tenant, stop):
        self.labels += 1
        label = str(self.labels)
        text = self.do(
            stop,
            lambda m: m.add_token(tenant, label),
            lambda: self.registry.tokens.add(tenant, [Scope.INVOKE], label),
        )
        if text is not None:
            self.texts[label] = text

    @rule(tenant=TENANTS, which=st.integers(0, 5), stop=STOPS)
    def revoke_token(self, tenant, which, stop):
        labels = sorted(self.texts)
        if labels:
            label = labels[which % len(labels)]
            ids = {t.label: t.id for n in ("acme", "other") for t in self.registry.tokens.of(n)}
            self.do(
                stop,
                lambda m: m.revoke_token(tenant, label),
                lambda: self.registry.tokens.revoke(tenant, ids.get(label, "gone")),
            )

    @rule(
        tenant=TENANTS, plugin=PLUGINS, module=MODULES, stop=STOPS, again=STOPS, ready=st.booleans()
    )
    def upload(self, tenant, plugin, module, stop, again, ready):
        def call():
            digest, size = self.registry.blobs.put([module[:2], module[2:]], 10_000)
            return self.registry.plugins.add_version(tenant, plugin, digest, size)

        version = self.do(stop, lambda m: m.add_version(tenant, plugin, module), call, again)
        seen = self.given.get((tenant, plugin), 0)
        if version is not None:
            assert version.number > seen
            if ready:
                self.mark(tenant, plugin, version.number, ready, None)
        of = self.model.plugins.get((tenant, plugin))
        if of is not None and of.versions:
            self.given[tenant, plugin] = max(seen, *of.versions)

    @rule(
        tenant=TENANTS,
        plugin=PLUGINS,
        number=NUMBERS,
        ready=st.sampled_from([True, True, False]),
        stop=STOPS,
    )
    def mark(self, tenant, plugin, number, ready, stop):
        if ready:
            self.do(
                stop,
                lambda m: m.mark(tenant, plugin, number, "ready"),
                lambda: self.registry.plugins.mark_ready(
                    self.registry.plugins.version(tenant, plugin, number)
                ),
            )
        else:
            self.do(
                stop,
                lambda m: m.mark(tenant, plugin, number, "failed"),
                lambda: self.registry.plugins.mark_failed(
                    self.registry.plugins.version(tenant, plugin, number), "why"
                ),
            )

    @rule(tenant=TENANTS, plugin=PLUGINS, number=NUMBERS, stop=STOPS, again=STOPS)
    def remove_version(self, tenant, plugin, number, stop, again):
        self.do(
            stop,
            lambda m: m.remove_version(tenant, plugin, number),
            lambda: self.registry.plugins.remove_version(tenant, plugin, number),
            again,
        )

    @rule(tenant=TENANTS, plugin=RARELY, stop=STOPS, again=STOPS)
    def remove_plugin(self, tenant, plugin, stop, again):
        self.do(
            stop,
            lambda m: m.remove_plugin(tenant, plugin),
            lambda: self.registry.plugins.remove(tenant, plugin),
            again,
        )
        self.numbers_begin_again()

    @rule(tenant=st.sampled_from(["other"] * 5 + ["acme"]), stop=STOPS, again=STOPS)
    def remove_tenant(self, tenant, stop, again):
        self.do(
            stop,
            lambda m: m.remove_tenant(tenant),
            lambda: self.registry.remove_tenant(tenant),
            again,
        )
        self.numbers_begin_again()

    def numbers_begin_again(self) -> None:
        self.given = {key: seen for key, seen in self.given.items() if key in self.model.plugins}

    @rule(tenant=TENANTS, plugin=PLUGINS, alias=ALIASES, number=NUMBERS, stop=STOPS)
    def set_alias(self, tenant, plugin, alias, number, stop):
        self.do(
            stop,
            lambda m: m.set_alias(tenant, plugin, alias, number),
            lambda: self.registry.aliases.set(tenant, plugin, alias, number),
        )

    @rule(tenant=TENANTS, plugin=PLUGINS, alias=ALIASES, stop=STOPS)
    def roll_back(self, tenant, plugin, alias, stop):
        self.do(
            stop,
            lambda m: m.roll_back(tenant, plugin, alias),
            lambda: self.registry.aliases.roll_back(tenant, plugin, alias),
        )

    @rule(tenant=TENANTS, plugin=PLUGINS, alias=ALIASES, stop=STOPS)
    def remove_alias(self, tenant, plugin, alias, stop):
        self.do(
            stop,
            lambda m: m.remove_alias(tenant, plugin, alias),
            lambda: self.registry.aliases.remove(tenant, plugin, alias),
        )

    @rule(tenant=TENANTS, key=KEYS, fingerprint=st.sampled_from("fg"), body=MODULES, stop=STOPS)
    def remember(self, tenant, key, fingerprint, body, stop):
        self.do(
            stop,
            lambda m: m.remember(tenant, key, fingerprint, body),
            lambda: self.registry.answers.remember(tenant, key, fingerprint, Answer(200, "", body)),
        )

    @rule(stop=STOPS)
    def sweep(self, stop):
        for path in self.registry.blobs.folder.iterdir():
            os.utime(path, (1, 1))  # everything is old
        self.do(stop, lambda _: None, self.registry.sweep, audited=False)

    @rule(stop=STOPS)
    def restart(self, stop):
        self.store.close()
        self.open(stop)


Machine.TestCase.settings = settings(
    max_examples=examples(40),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_registry = Machine.TestCase
