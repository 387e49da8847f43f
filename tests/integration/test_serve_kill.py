"""`kill -9` of a process that adds to a registry: what it has acknowledged is there, in every one of its lives.

This file is also the program that is killed. It prints a line for each thing when it is done, and no sooner.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from sandhost.serve.blobs import no_step
from sandhost.serve.problems import Unknown
from sandhost.serve.registry import Answer, Principal, Registry, Scope
from sandhost.serve.store import Store

DONE = 42
"""The status with which it ends by itself at some step of the disk."""


def live(folder: str, seed: int, steps: int) -> None:
    """Add versions, tokens, aliases and answers until the end comes."""
    dice = random.Random(seed)
    left = steps

    def step(_name: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(DONE)

    def say(what: str, *facts: object) -> None:
        os.write(1, json.dumps([what, *facts]).encode() + b"\n")

    with Store(folder, step if steps else no_step) as store:
        registry = Registry(store)
        say("open")
        if "acme" not in {tenant.name for tenant in registry.tenants}:
            registry.tenants.add("acme")
        while True:
            plugin = dice.choice(["wc", "sort"])
            module = dice.randbytes(dice.randrange(1, 20_000))
            digest, size = registry.blobs.put([module[:5000], module[5000:]], 1 << 20)
            number = registry.plugins.add_version("acme", plugin, digest, size).number
            say("version", plugin, number, digest)
            registry.plugins.mark_ready(registry.plugins.version("acme", plugin, number))
            say("ready", plugin, number)
            alias = dice.choice(["live", "test"])
            say("alias?", plugin, alias, number)
            registry.aliases.set("acme", plugin, alias, number)
            say("alias", plugin, alias, number)
            text = registry.tokens.add("acme", [Scope.INVOKE])
            say("token", text)
            if dice.random() < 0.3:
                say("revoked?", text)
                registry.tokens.revoke("acme", registry.tokens.who(text).token_id)
                say("revoked", text)
            key = str(dice.random())
            registry.answers.remember("acme", key, key, Answer(200, "", key.encode()))
            say("answer", key)
            mine = registry.plugins.find("acme", plugin)
            named = {n for a in mine.aliases.values() for n in (a.number, a.previous)}
            free = sorted(set(mine.versions) - named - {mine.latest})
            if free:
                say("removed?", plugin, free[0])
                registry.plugins.remove_version("acme", plugin, free[0])
                say("removed", plugin, free[0])
            if dice.random() < 0.1:  # a tenant with a bit of everything comes and goes
                if "brief" in registry.tenants:
                    registry.remove_tenant("brief")
                registry.tenants.add("brief")
                registry.tokens.add("brief", [Scope.INVOKE])
                made = registry.plugins.add_version("brief", plugin, digest, size)
                registry.plugins.mark_ready(made)
                registry.aliases.set("brief", plugin, "live", made.number)
                registry.answers.remember("brief", "k", "f", Answer(200, "", b""))
                who = Principal("brief", frozenset(), "t")
                remove = partial(registry.plugins.remove, "brief", plugin)
                registry.audit.change(who, "a", "s", remove)
                say("audited", registry.audit.log("brief", 1)[0].at_ns)


class Witness:
    """What was printed, over all lives. Something with a "?" was begun: it may be done or not."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], str] = {}
        self.ready: set[tuple[str, int]] = set()
        self.perhaps_removed: set[tuple[str, int]] = set()
        self.aliases: dict[tuple[str, str], int] = {}
        self.asked: dict[tuple[str, str], int] = {}
        self.tokens: dict[str, bool | None] = {}
        self.answers: list[str] = []
        self.numbers: dict[str, list[int]] = {}
        self.heard = 0
        self.audited = 0

    def hear(self, lines: list[bytes]) -> None:
        for line in lines:
            what, *facts = json.loads(line)
            self.heard += 1
            if what == "version":
                plugin, number, digest = facts
                self.versions[plugin, number] = digest
                self.numbers.setdefault(plugin, []).append(number)
            elif what == "ready":
                self.ready.add((facts[0], facts[1]))
            elif what == "alias?":
                self.asked[facts[0], facts[1]] = facts[2]
            elif what == "alias":
                self.aliases[facts[0], facts[1]] = self.asked.pop((facts[0], facts[1]))
            elif what == "token":
                self.tokens[facts[0]] = True
            elif what in ("revoked?", "revoked"):
                self.tokens[facts[0]] = None if what == "revoked?" else False
            elif what == "audited":
                self.audited = facts[0]
            elif what == "answer":
                self.answers.append(facts[0])
            elif what == "removed?":
                self.perhaps_removed.add((facts[0], facts[1]))
            elif what == "removed":
                self.versions.pop((facts[0], facts[1]))
                self.perhaps_removed.discard((facts[0], facts[1]))

    def compare(self, folder: Path) -> None:
        """Open the folder as the next life will, and look for everything."""
        with Store(folder) as store:
            registry = Registry(store)
            there = {
                (plugin.name, number): version
                for plugin in registry.plugins.of("acme")
                for number, version in plugin.versions.items()
            }
            for key, digest in list(self.versions.items()):
                if key in self.perhaps_removed and key not in there:
                    del self.versions[key]
                    continue
                assert there[key].digest == digest
                store.blobs.read(digest)
                if key in self.ready:
                    assert there[key].state == "ready"
            self.perhaps_removed.clear()
            unheard = set(there) - set(self.versions)
            assert len(unheard) <= 1  # done, and killed before it could say so
            for plugin, number in unheard:
                self.versions[plugin, number] = there[plugin, number].digest
                self.numbers.setdefault(plugin, []).append(number)
            for numbers in self.numbers.values():
                assert numbers == sorted(set(numbers))  # none was given twice
            for plugin, alias in {**self.aliases, **self.asked}:
                before, asked = self.aliases.get((plugin, alias)), self.asked.get((plugin, alias))
                found = registry.plugins.find("acme", plugin).aliases.get(alias)
                if found is None:
                    assert before is None
                else:
                    assert found.number in (before, asked)
                    assert registry.plugins.resolve("acme", plugin, alias).state == "ready"
                    self.aliases[plugin, alias] = found.number
            self.asked.clear()
            for text, valid in self.tokens.items():
                try:
                    assert registry.tokens.who(text).tenant == "acme"
                    assert valid is not False
                    self.tokens[text] = True
                except Unknown:
                    assert valid is not True
                    self.tokens[text] = False
            for key in self.answers[-500:]:
                answer = registry.answers.recall("acme", key, key)
                assert answer is not None
                assert answer.body == key.encode()
            if self.audited:  # together with the change, or a later one
                assert registry.audit.log("brief", 1)[0].at_ns >= self.audited
            named = {version.digest for version in there.values()}
            brief = registry.plugins.of("brief")
            named |= {version.digest for p in brief for version in p.versions.values()}
            assert set(os.listdir(store.blobs.folder)) == named


def one_life(folder: Path, seed: int, *, steps: int, seconds: float) -> tuple[int, list[bytes]]:
    """Run the program until it is killed, or ends at its step; return its status and what it said."""
    command = [sys.executable, "-W", "error", __file__, str(folder), str(seed), str(steps)]
    # Without a buffer, from which `communicate` would not take what `readline` has left there.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = child.stdout.readline()  # it is up, or has ended on the way
        try:
            said, wrong = child.communicate(timeout=60 if steps else seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            said, wrong = child.communicate()
        assert wrong == b"", wrong.decode()
        whole = (first + said).split(b"\n")
        assert whole[-1] == b"", "a line is written at once"
        return child.returncode, whole[:-1]


def lives(folder: Path, count: int, seed: int) -> None:
    dice = random.Random(seed)
    witness = Witness()
    for life in range(count):
        steps = 0 if life % 2 else dice.randrange(1, 400)
        seconds = dice.uniform(0.0, 0.5)
        status, said = one_life(folder, dice.randrange(1 << 30), steps=steps, seconds=seconds)
        assert status == (DONE if steps else -signal.SIGKILL)
        witness.hear(said)
        witness.compare(folder)
    assert witness.heard > 10 * count


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path):
    lives(tmp_path / "data", 6, seed=random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_acknowledged_is_there_after_many_kills(tmp_path):
    lives(tmp_path / "data", 150, seed=random.randrange(1 << 30))


if __name__ == "__main__":
    live(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
