"""Done-when 6: what must be refused, and schemathesis over the OpenAPI description."""

import json
import pickle
import shutil
import socket
import urllib.request
from urllib.error import HTTPError

import pytest
from servers import SPEC, serving

from lorakit.serving.keys import add_key, read_keys


def call(url, body=None, headers=None, method=None):
    """Status, headers and JSON (or text) of a request."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, method=method)
    asked.add_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        asked.add_header(name, value)
    try:
        with urllib.request.urlopen(asked, timeout=20) as got:
            status, head, text = got.status, got.headers, got.read().decode()
    except HTTPError as error:
        with error:
            status, head, text = error.code, error.headers, error.read().decode()
    try:
        return status, head, json.loads(text)
    except ValueError:
        return status, head, text


ASK = {"prompt": "hello", "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def guarded(house, tmp_path_factory):
    """A server with keys, that lets admins load adapters from one folder."""
    root = tmp_path_factory.mktemp("guarded")
    keys = root / "keys.json"
    secrets = {
        "admin": add_key(keys, "admin", admin=True),
        "some": add_key(keys, "some", adapters=("sma*",)),
        "slow": add_key(keys, "slow", requests_per_minute=2),
    }
    (root / "allowed").mkdir()
    with serving(
        *(house / "tiny-base", house / "store"),
        keys=str(keys),
        allow_loading=True,
        loading_dirs=(str(root / "allowed"),),
        max_body_kb=100,
    ) as server:
        yield server, secrets, root


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def test_a_forged_key_no_key_and_a_hash_in_a_keys_place_are_refused(guarded):
    server, secrets, root = guarded
    stored = json.loads((root / "keys.json").read_text())["keys"][0]["sha256"]
    for headers in (
        {},
        bearer("lk-forged"),
        bearer(secrets["admin"][:-1]),
        bearer(stored),
        bearer("\u00e9\u00ff"),
        {"Authorization": secrets["admin"]},
        {"Authorization": f"Basic {secrets['admin']}"},
    ):
        headers = {k: v.encode().decode("latin-1") for k, v in headers.items()}
        for path in ("/v1/models", "/metrics", "/v1/lorakit/status"):
            status, head, _said = call(server.url + path, headers=headers)
            assert status == 401, headers
            assert head["WWW-Authenticate"] == "Bearer"
        assert call(f"{server.url}/v1/completions", {"model": "small", **ASK}, headers)[0] == 401
    assert secrets["admin"] not in (root / "keys.json").read_text()
    assert call(f"{server.url}/v1/models", headers=bearer(secrets["admin"]))[0] == 200
    assert call(f"{server.url}/health")[0] == 200


def test_a_key_sees_and_uses_its_own_adapters_only(guarded):
    server, secrets, _ = guarded
    headers = bearer(secrets["some"])
    assert [m["id"] for m in call(f"{server.url}/v1/models", headers=headers)[2]["data"]] == [
        "small"
    ]
    url = f"{server.url}/v1/completions"
    assert call(url, {"model": "small", **ASK}, headers)[0] == 200
    assert call(url, {"model": "small@1", **ASK}, headers)[0] == 200
    for name in ("large", "tiny-base", "large@1"):
        status, _, said = call(url, {"model": name, **ASK}, headers)
        assert status == 404
        assert said["error"]["code"] == "model_not_found"
    body = {"lora_name": "mine", "lora_path": "small"}
    assert call(f"{server.url}/v1/load_lora_adapter", body, headers)[0] == 403


def test_a_rate_that_is_used_up_is_a_429_that_says_when(guarded):
    server, secrets, _ = guarded
    asked = [
        call(f"{server.url}/v1/completions", {"model": "small", **ASK}, bearer(secrets["slow"]))
        for _ in range(4)
    ]
    assert [status for status, _, _ in asked][:2] == [200, 200]
    assert asked[-1][0] == 429
    assert int(asked[-1][1]["Retry-After"]) >= 1


@pytest.mark.parametrize(
    "path",
    [
        "../store/objects",
        "/etc",
        "{allowed}/../secret",
        "{allowed}/link",
        "{allowed}/%2e%2e/secret",
        "..",
        "small/../../x",
        "C:\\windows",
        "{root}/secret",
        "{allowed}/inner-link",
    ],
)
def test_a_path_that_leads_out_of_the_allowed_folders_is_refused(guarded, path):
    server, secrets, root = guarded
    secret, allowed = root / "secret", root / "allowed"
    if not secret.exists():
        good = root.parent / "good-adapter"
        source = server.ready.catalog.store.resolve("small").folder
        shutil.copytree(source, good, dirs_exist_ok=True)
        shutil.copytree(source, secret)
        (allowed / "link").symlink_to(secret)
        (allowed / "inner-link").mkdir()
        for file in secret.iterdir():
            (allowed / "inner-link" / file.name).symlink_to(file)
        shutil.copytree(source, allowed / "fine")
    body = {"lora_name": "mine", "lora_path": path.format(allowed=allowed, root=root)}
    status, _, said = call(f"{server.url}/v1/load_lora_adapter", body, bearer(secrets["admin"]))
    assert status in (403, 404), said
    assert "mine" not in {card.name for card in server.ready.catalog.list()}


def test_what_is_allowed_can_be_loaded_used_and_unloaded(guarded):
    server, secrets, root = guarded
    headers = bearer(secrets["admin"])
    fine = root / "allowed" / "fine2"
    shutil.copytree(server.ready.catalog.store.resolve("large").folder, fine)
    body = {"lora_name": "extra", "lora_path": str(fine)}
    status, _, said = call(f"{server.url}/v1/load_lora_adapter", body, headers)
    assert (status, said) == (200, "Success: LoRA adapter 'extra' added successfully.")
    url = f"{server.url}/v1/completions"
    got = call(url, {"model": "extra", **ASK}, headers)[2]["choices"][0]["text"]
    assert got == call(url, {"model": "large", **ASK}, headers)[2]["choices"][0]["text"]
    assert call(f"{server.url}/v1/unload_lora_adapter", {"lora_name": "extra"}, headers)[0] == 200
    assert call(url, {"model": "extra", **ASK}, headers)[0] == 404
    assert call(f"{server.url}/v1/unload_lora_adapter", {"lora_name": "extra"}, headers)[0] == 404


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "..", ".hidden", "a\0b", "", "x" * 101, "tiny-base"]
)
def test_a_name_that_is_none_is_refused(guarded, name):
    server, secrets, _ = guarded
    body = {"lora_name": name, "lora_path": "small"}
    status, _, _ = call(f"{server.url}/v1/load_lora_adapter", body, bearer(secrets["admin"]))
    assert status in (400, 403)
    asked = {"model": name or "?", **ASK}
    if name != "tiny-base":
        url = f"{server.url}/v1/completions"
        assert call(url, asked, bearer(secrets["admin"]))[0] in (400, 404)


def test_a_pickle_is_never_opened(guarded):
    server, secrets, root = guarded
    folder = root / "allowed" / "pickled"
    folder.mkdir()
    source = server.ready.catalog.store.resolve("small").folder
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    trap = root / "ran"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    body = {"lora_name": "trap", "lora_path": str(folder)}
    headers = bearer(secrets["admin"])
    status, _, said = call(f"{server.url}/v1/load_lora_adapter", body, headers)
    assert status == 400
    assert "pickle" in said["error"]["message"]
    # And one that goes by the name of safetensors.
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert call(f"{server.url}/v1/load_lora_adapter", body, headers)[0] == 400
    assert not trap.exists()


def test_files_far_too_large_are_refused_unread(guarded):
    """A tokenizer beside an adapter is never opened; a description of 100 MB is not read."""
    server, secrets, root = guarded
    folder = root / "allowed" / "bomb"
    shutil.copytree(server.ready.catalog.store.resolve("small").folder, folder)
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # a tebibyte of zeros that takes no room
    body = {"lora_name": "bomb", "lora_path": str(folder)}
    headers = bearer(secrets["admin"])
    assert call(f"{server.url}/v1/load_lora_adapter", body, headers)[0] == 200
    for name in ("lorakit.json", "adapter_config.json", "adapter_model.safetensors"):
        kept = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(1 << 36)
        status, _, said = call(f"{server.url}/v1/load_lora_adapter", body, headers)
        assert status == 400
        assert "at most" in said["error"]["message"]
        (folder / name).write_bytes(kept)


def test_a_body_of_100_mb_is_refused_before_it_is_read(guarded):
    server, _secrets, _ = guarded
    host, port = server.url.removeprefix("http://").split(":")
    for headers, chunk in (
        (b"Content-Length: 104857600\r\n", b"x" * 65536),
        (b"Transfer-Encoding: chunked\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers
            line.sendall(head + b"Content-Type: application/json\r\n\r\n")
            sent = 0
            try:
                while sent < 100 << 20:
                    line.sendall(chunk)
                    sent += len(chunk)
                    line.setblocking(False)
                    try:
                        got = line.recv(4096)
                        if got:
                            break
                    except BlockingIOError:
                        pass
                    line.setblocking(True)
            except OSError:
                got = b"HTTP/1.1 413"  # closed while we were still sending
            assert b" 413 " in got + b" "
            assert sent < 20 << 20


def test_another_hosts_name_is_refused_on_loopback(running):
    """DNS rebinding: a page elsewhere points its own name at 127.0.0.1."""
    status, _, _said = call(f"{running.url}/v1/models", headers={"Host": "evil.example"})
    assert status == 421
    assert call(f"{running.url}/v1/models", headers={"Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"[", b"null", b"[]", b'"x"', b"\xff\xfe", b"{" * 10_000, b'{"model": 1}']
)
def test_a_body_that_is_no_request_is_a_400(running, body):
    for path in ("completions", "chat/completions", "load_lora_adapter"):
        asked = urllib.request.Request(f"{running.url}/v1/{path}", body)
        asked.add_header("Content-Type", "application/json")
        with pytest.raises(HTTPError) as error:
            urllib.request.urlopen(asked, timeout=10)
        with error.value:
            assert error.value.code == 400
            assert json.loads(error.value.read())["error"]["type"] == "invalid_request_error"


def test_keys_are_kept_as_hashes_and_files_that_others_write_are_refused(tmp_path):
    from lorakit.errors import ConfigError

    path = tmp_path / "keys.json"
    secret = add_key(path, "one", adapters=("a*",), requests_per_minute=5.0)
    assert path.stat().st_mode & 0o777 == 0o600
    ring = read_keys(path)
    assert ring.find(secret).name == "one"
    assert ring.find(secret + "x") is None
    with pytest.raises(ConfigError, match="already"):
        add_key(path, "one")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="written by others"):
        read_keys(path)


def test_an_address_that_others_reach_needs_keys():
    from lorakit.errors import ConfigError
    from lorakit.serving.spec import HttpSpec

    with pytest.raises(ConfigError, match="--keys FILE"):
        HttpSpec(host="0.0.0.0")
    assert HttpSpec(host="0.0.0.0", keys="x").host == "0.0.0.0"


def test_schemathesis_finds_no_500(house):
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error

    with serving(house / "tiny-base", house / "store", SPEC, allow_loading=True) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        statuses: dict[str, set[int]] = {}
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def attack(case):
                response = case.call(timeout=30)
                statuses.setdefault(case.operation.label, set()).add(response.status_code)
                case.validate_response(response, checks=[not_a_server_error])

            attack()
        assert {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models"} <= set(
            statuses
        )
        assert not {s for seen in statuses.values() for s in seen if s >= 500}
        server.rest(30)
