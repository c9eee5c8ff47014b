"""`lorakit serve`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from lorakit.cli import serve_options as options
from lorakit.cli.options import flatten
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say
from lorakit.cli.spec_options import read_spec, with_specs
from lorakit.errors import ConfigError
from lorakit.extras import need
from lorakit.models.sources import check_named
from lorakit.models.spec import FULL, ModelSpec
from lorakit.run.present import require_adapters
from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec


def serve(
    base: options.Base = None,
    adapters: options.Adapters = None,
    store: options.StoreOption = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    base_dtype: options.BaseDtype = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    ignore_adapter: options.IgnoreAdapter = False,
    force: options.Force = False,
    new_key: options.NewKey = None,
    key_adapters: options.KeyAdapters = "*",
    key_requests: options.KeyRequests = None,
    key_tokens: options.KeyTokens = None,
    key_admin: options.KeyAdmin = False,
    *,
    specs: Mapping[str, Any],
) -> None:
    """Serve one base and all its adapters over HTTP; the model in a request names the adapter.

    `lorakit serve --base smollm2-135m`

    Any client of OpenAI's API works: set its base_url to http://127.0.0.1:8000/v1. A page to try it
    is at http://127.0.0.1:8000/. On Ctrl-C or SIGTERM running requests are finished first.

    With `--engine vllm` vLLM generates; names, keys, limits and the page stay the same.
    """
    if new_key is not None:
        if "keys" not in specs:
            raise ConfigError("--new-key needs --keys FILE, where the key's hash is stored")
        from lorakit.serving.keys import add_key

        secret = add_key(
            specs["keys"],
            new_key,
            adapters=tuple(part for part in key_adapters.split(",") if part),
            requests_per_minute=key_requests,
            tokens_per_minute=key_tokens,
            admin=key_admin,
        )
        typer.echo(secret)
        return
    need("serve", "`lorakit serve`")
    engine, http = read_spec(EngineSpec, specs), read_spec(HttpSpec, specs)
    runtime = read_spec(RuntimeSpec, specs)
    shared = (revision, device, dtype, trust_remote_code, ignore_adapter, base_dtype or FULL)
    model = ModelSpec(base or ModelSpec().model, *shared)
    named = flatten({"adapters": adapters or []})["adapters"]
    check_named(model)
    require_adapters((name for name in named if not Path(name).expanduser().is_dir()), store)
    from lorakit.serving import server
    from lorakit.serving.base import base_to_serve, packing_to_serve

    notes: tuple[str, ...] = ()
    if base is None:
        model = base_to_serve(model, named, store)

    sock = server.listen(http)
    try:
        with fetching() as progress:
            if base_dtype is None and runtime.engine != "vllm":
                model, notes = packing_to_serve(model, named, store)
            ready = server.make_ready(
                *(model, engine, http, runtime),
                adapters=named,
                store=store,
                force=force,
                progress=progress,
                given=[f.name for f in fields(EngineSpec) if f.name in specs],
            )
        say((*notes, *ready.notes))
        console.print(f"serving {ready.catalog.base} on {server.address(sock)}", soft_wrap=True)
        server.run(ready, sock, http)
    finally:
        sock.close()


command = with_specs(serve, {"Server": HttpSpec, "Engine": EngineSpec, "vLLM": RuntimeSpec})
