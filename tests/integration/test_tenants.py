"""Tenants: each pays for its own guests, and for nobody else's."""

from __future__ import annotations

import threading

import pytest
from helpers import WASM_PAGE, guest_file

import sandhost

MIB = 2**20


def test_a_tenant_is_made_by_its_first_use_and_found_again(host):
    assert host.tenant("a") is host.tenant("a")
    assert host.tenant("a").memory_limit is None
    assert host.tenant("b", memory_limit="1 MiB").memory_limit == MIB
    assert host.tenant("b").memory_limit == MIB
    assert "b" in repr(host.tenant("b"))


def test_another_limit_for_the_same_tenant_is_refused(host):
    host.tenant("a", memory_limit=MIB)
    with pytest.raises(sandhost.ConfigError, match="exists with memory_limit=1048576, not 2097152"):
        host.tenant("a", memory_limit=2 * MIB)
    host.tenant("a", memory_limit="1 MiB")


def test_the_hosts_default_limit_is_each_tenants():
    with sandhost.Host(cache=False, max_guests=8, tenant_memory="20 MiB") as host:
        plugin = host.load(guest_file("bss"))
        with plugin.spawn(tenant="a"), plugin.spawn(tenant="b"):
            for name in "ab":
                with pytest.raises(sandhost.OutOfMemory, match="tenant's limit is 20 MiB"):
                    plugin.spawn(tenant=name)


def test_one_tenants_use_leaves_anothers_untouched(host):
    plugin = host.load(guest_file("no_max_memory"))
    with plugin.spawn(tenant="a") as one, plugin.spawn(tenant="b"):
        one.call("grow", 9)
        assert host.tenant("a").memory_bytes == 10 * WASM_PAGE
        assert host.tenant("b").memory_bytes == WASM_PAGE
    assert host.tenant("a").memory_bytes == host.tenant("b").memory_bytes == 0
    assert host.tenant("a").memory_peak_bytes == 10 * WASM_PAGE


@pytest.mark.parametrize("name", ["", "ü", "a\nb", "x" * 10_000, "\0"])
def test_any_text_names_a_tenant(host, name):
    with host.load(guest_file("secrets")).spawn(tenant=name):
        assert host.tenant(name).memory_bytes == 4 * WASM_PAGE


def test_a_tenant_of_another_host_is_refused(host):
    with sandhost.Host(cache=False, max_guests=4) as other:
        foreign = other.tenant("a")
        with pytest.raises(sandhost.SandhostError):
            host.load(guest_file("secrets")).spawn(tenant=foreign)
        assert foreign.memory_bytes == 0


def test_threads_that_name_a_tenant_at_once_get_the_same_one(host):
    start = threading.Barrier(8)
    got = []

    def work():
        start.wait()
        got.append(host.tenant("new"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(tenant) for tenant in got}) == 1


def test_many_threads_never_push_a_tenant_over_its_limit(host):
    tenant = host.tenant("a", memory_limit=10 * WASM_PAGE)
    plugin = host.load(guest_file("grow_forever"))
    start = threading.Barrier(6)
    refused = []

    def work():
        start.wait()
        for _ in range(20):
            try:
                with plugin.spawn(tenant=tenant) as guest:
                    guest.call("until_refused_touching")
            except sandhost.OutOfMemory:
                refused.append(1)
            assert tenant.memory_bytes <= 10 * WASM_PAGE

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 120
    assert tenant.memory_peak_bytes <= 10 * WASM_PAGE
    assert tenant.memory_bytes == 0
