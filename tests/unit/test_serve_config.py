"""Settings: where they come from, and what is said of those that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from sandhost import ConfigError
from sandhost.serve.config import Settings, flag_of, variable_of
from sandhost.tenants import Quotas

TOKEN = "sh_" + "a" * 43


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "serve.toml"
        file.write_text(text)
        return file

    return write


def refusal(*arguments) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Settings.load(*arguments)
    return str(caught.value).splitlines()


def test_every_setting_has_a_default_and_a_description():
    assert Settings.load() == Settings()
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_a_file_is_under_the_environment_and_that_under_the_command_line(write, monkeypatch):
    file = write('http_port = 1\nplugin_versions = 2\nupload_limit = "1 KiB"\n')
    monkeypatch.setenv("SANDHOST_PLUGIN_VERSIONS", "12")
    monkeypatch.setenv("SANDHOST_UPLOAD_LIMIT", "2 KiB")
    settings = Settings.load(file, {"upload_limit": "3 KiB"})
    assert (settings.http_port, settings.plugin_versions, settings.upload_limit) == (1, 12, 3 << 10)


def test_a_value_means_the_same_wherever_it_stands(write, monkeypatch):
    text = {
        "data": "/srv/sandhost",
        "http_port": "0",
        "process_limit": "cgroup",
        "handle_memory": "1 MiB",
        "max_guests": "20",
        "tenant_cpus": "0.5",
        "tenant_guests": "7",
        "guest_deadline": "250 ms",
        "session_idle": "2 min",
        "background": "on",
        "metrics": "off",
        "admin_token": TOKEN,
    }
    by_call = Settings.load(None, text)
    by_file = Settings.load(write("".join(f'{k} = "{v}"\n' for k, v in text.items())))
    for name, value in text.items():
        monkeypatch.setenv(variable_of(name), value)
    assert by_call == by_file == Settings.load()
    assert by_call.data == Path("/srv/sandhost")
    assert (by_call.process_limit, by_call.max_guests) == ("cgroup", 20)
    assert (by_call.guest_deadline, by_call.session_idle) == (0.25, 120.0)
    assert (by_call.background, by_call.metrics) == (True, False)


def test_a_number_of_toml_is_taken_as_it_is(write):
    settings = Settings.load(
        write("http_port = 80\ntenant_cpus = 2\ndebug = false\nqueue_time = 0.5")
    )
    assert (settings.http_port, settings.tenant_cpus, settings.debug) == (80, 2.0, False)
    assert settings.queue_time == 0.5


def test_a_limit_of_the_file_is_lifted_by_the_word_none(write, monkeypatch):
    monkeypatch.setenv("SANDHOST_PROCESS_LIMIT", "none")
    assert Settings.load(write('process_limit = "1 GiB"')).process_limit is None


def test_an_empty_variable_is_none_at_all(monkeypatch):
    monkeypatch.setenv("SANDHOST_HTTP_PORT", "")
    assert Settings.load().http_port == 8080


def test_settings_made_by_a_program_look_at_no_variable(monkeypatch):
    monkeypatch.setenv("SANDHOST_HTTP_PORT", "1")
    assert Settings().http_port == 8080


def test_settings_are_immutable():
    with pytest.raises(ValidationError):
        Settings().http_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("http_port", "x", "'x' is no whole number from 0 to 65535"),
        ("http_port", -1, "-1 is no whole number from 0 to 65535"),
        ("grpc_port", 65_536, "65536 is no whole number from 0 to 65535"),
        ("http_port", True, "True is no whole number from 0 to 65535"),
        ("http_port", 1.5, "1.5 is no whole number from 0 to 65535"),
        ("http_port", "9" * 5000, "'" + "9" * 79 + " is no whole number from 0 to 65535"),
        ("max_guests", 0, "0 is no whole number from 1 to 28000"),
        ("http_host", 5, "5 is no text"),
        ("data", "", "'' is no text"),
        (
            "upload_limit",
            "16M",
            '\'16M\' is not a size: write a number and a unit, such as "16 MiB" or "16 MB"',
        ),
        ("process_limit", 3.5, "a size is an int or text such as '16 MiB', not 3.5"),
        ("queue_time", "1 day", '\'1 day\' is not a duration: write for example "250 ms" or "2 s"'),
        ("drain_time", 0, "0 is no time above 0"),
        ("guest_deadline", 0, "0 is no time above 0"),
        ("tenant_cpus", 0, "0 is no number above 0"),
        ("tenant_cpus", "nan", "'nan' is no number above 0"),
        ("tenant_weight", "much", "'much' is no number above 0"),
        ("tenant_weight", [1], "[1] is no number above 0"),
        ("metrics", 3, "3 is neither true nor false"),
        ("debug", "maybe", "'maybe' is neither true nor false"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_place(name, value, reason, write, monkeypatch):
    assert refusal(None, {name: value}) == [f"{flag_of(name)}: {reason}"]
    if isinstance(value, str) and value:
        file = write(f'{name} = "{value}"')
        assert refusal(file) == [f"{name} in {file}: {reason}"]
        monkeypatch.setenv(variable_of(name), value)
        assert refusal(file) == [f"{variable_of(name)}: {reason}"]


def test_all_that_is_wrong_is_said_at_once(write, monkeypatch):
    file = write('http_port = "x"\nmetrics = 7\n')
    monkeypatch.setenv("SANDHOST_MAX_GUESTS", "99999")
    assert refusal(file, {"queue_time": "-1"}) == [
        f"http_port in {file}: 'x' is no whole number from 0 to 65535",
        "SANDHOST_MAX_GUESTS: 99999 is no whole number from 1 to 28000",
        '--queue-time: \'-1\' is not a duration: write for example "250 ms" or "2 s"',
        f"metrics in {file}: 7 is neither true nor false",
    ]


def test_an_unknown_name_is_refused_with_the_nearest_right_one(write):
    file = write("htpp_port = 1\n[zzz]\nport = 1\n")
    assert refusal(file) == [
        f"{file}: there is no setting 'htpp_port': did you mean 'http_port'?",
        f"{file}: there is no setting 'zzz': `sandhost serve --help` lists them all",
    ]
    assert refusal(None, {"max_guest": 1}) == [
        "there is no setting 'max_guest': did you mean 'max_guests'?"
    ]


def test_a_misspelt_variable_is_refused_and_others_are_none_of_ours(monkeypatch):
    monkeypatch.setenv("SANDHOST_GCTRACE", "1")
    monkeypatch.setenv("SANDHOST_CACHE_DIR", "/tmp")
    monkeypatch.setenv(
        "SANDHOST_PORT", "tcp://10.0.0.1:80"
    )  # Kubernetes, of a service of this name
    Settings.load()
    monkeypatch.setenv("SANDHOST_HTTP_PROT", "1")
    assert refusal() == ["SANDHOST_HTTP_PROT is no setting: did you mean SANDHOST_HTTP_PORT?"]


def test_a_file_that_cannot_be_read_is_named(tmp_path, write):
    assert refusal(tmp_path / "none") == [
        f"{tmp_path / 'none'} cannot be read: No such file or directory"
    ]
    assert refusal(tmp_path) == [f"{tmp_path} cannot be read: Is a directory"]
    file = write("http_port =")
    [line] = refusal(file)
    assert line.startswith(f"{file} is no TOML: Invalid value")
    file.write_bytes(b"data = '\xff'")
    [line] = refusal(file)
    assert line.startswith(f"{file} is no TOML: ")


def test_no_secret_is_shown(monkeypatch):
    settings = Settings.load(None, {"admin_token": TOKEN, "observe_token": "0123456789abcdef"})
    assert settings.admin_token == SecretStr(TOKEN)
    assert TOKEN not in repr(settings)
    assert "0123456789abcdef" not in repr(settings)
    monkeypatch.setenv("SANDHOST_ADMIN_TOKEN", "hunter2")
    assert refusal(None, {"observe_token": "hunter3"}) == [
        "--observe-token: it has fewer than 16 characters, and could be guessed",
        "SANDHOST_ADMIN_TOKEN: it is no token: write sh_ and what Python's secrets.token_urlsafe(32) returns",
    ]


def test_a_tenant_has_its_own_quotas_and_the_others_by_default():
    settings = Settings(tenant_memory_limit="1 MiB", tenant_guests=5, tenant_weight=2)
    assert settings.quotas(Quotas(guests=9, cpus=0.5)) == Quotas(
        memory_limit=1 << 20, guests=9, cpus=0.5, weight=2
    )
    assert settings.quotas(Quotas(guests=0)).guests == 0
    assert Settings().quotas(Quotas()) == Quotas()


def test_limits_and_bounds_are_those_of_the_settings():
    settings = Settings(guest_memory="1 MiB", guest_deadline="none", tenant_storage="1 KiB")
    assert settings.guest_limits().memory_bytes == 1 << 20
    assert settings.guest_limits().deadline is None
    assert settings.bounds().storage_bytes == 1 << 10
