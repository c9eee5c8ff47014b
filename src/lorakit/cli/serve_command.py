"""`lorakit serve`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import typer

from lorakit.adapters.store.store import STORE_HELP
from lorakit.cli.options import flatten
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say
from lorakit.cli.spec_options import read_spec, with_specs
from lorakit.errors import ConfigError
from lorakit.extras import need
from lorakit.models.spec import ModelSpec
from lorakit.serving.spec import EngineSpec, HttpSpec, RuntimeSpec

_KEY_PANEL = "Making a key"


def serve(
    base: Annotated[
        str, typer.Option("--base", "--model", help="The base model, as --model of other commands.")
    ] = "smollm2-135m",
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapters",
            metavar="DIR|NAME,…",
            help="Folders of adapters, or names in the store; every name of the store that was "
            "trained on the base without it.",
        ),
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="DIR", help=STORE_HELP)] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Format of the base's weights and of the slots.")
    ] = "auto",
    revision: Annotated[str | None, typer.Option("--revision", help="Of a hub id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the base.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Serve adapters although their base was another one.")
    ] = False,
    new_key: Annotated[
        str | None,
        typer.Option(
            "--new-key",
            metavar="NAME",
            help="Make an API key, put its hash into the file of --keys, print it and end.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = None,
    key_adapters: Annotated[
        str,
        typer.Option(
            "--key-adapters",
            metavar="A,B*,…",
            help="Models that the new key may use.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = "*",
    key_requests: Annotated[
        float | None,
        typer.Option(
            "--key-requests", help="Requests a minute of the new key.", rich_help_panel=_KEY_PANEL
        ),
    ] = None,
    key_tokens: Annotated[
        float | None,
        typer.Option(
            "--key-tokens", help="Tokens a minute of the new key.", rich_help_panel=_KEY_PANEL
        ),
    ] = None,
    key_admin: Annotated[
        bool,
        typer.Option(
            "--key-admin", help="The new key may load adapters.", rich_help_panel=_KEY_PANEL
        ),
    ] = False,
    *,
    specs: Mapping[str, Any],
) -> None:
    """Serve one base and all its adapters; the model's name in a request chooses the adapter.

    `lorakit serve --base smollm2-135m`

    Any client of OpenAI's API works: set its base_url to http://127.0.0.1:8000/v1. A page to try it
    is at http://127.0.0.1:8000/. Ctrl-C or SIGTERM lets running answers end first.

    With `--engine vllm` vLLM computes, and names, keys, limits and the page stay as they are.
    """
    if new_key is not None:
        if "keys" not in specs:
            raise ConfigError("--new-key needs --keys FILE, where the key's hash is kept")
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
    model = ModelSpec(base, revision, device, dtype, trust_remote_code)
    from lorakit.serving import server

    sock = server.listen(http)
    try:
        with fetching() as progress:
            ready = server.make_ready(
                *(model, engine, http, runtime),
                adapters=flatten({"adapters": adapters or []})["adapters"],
                store=store,
                force=force,
                progress=progress,
                given=[f.name for f in fields(EngineSpec) if f.name in specs],
            )
        say(ready.notes)
        console.print(f"serving {ready.catalog.base} on {server.address(sock)}", soft_wrap=True)
        server.run(ready, sock, http)
    finally:
        sock.close()


command = with_specs(serve, {"Server": HttpSpec, "Engine": EngineSpec, "vLLM": RuntimeSpec})
