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

_KEY_PANEL = "Creating a key"


def serve(
    base: Annotated[
        str,
        typer.Option(
            "--base",
            "--model",
            help="The base model: the built-in smollm2-135m, a model folder, a .gguf file, or a "
            "Hugging Face hub id.",
        ),
    ] = "smollm2-135m",
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapters",
            metavar="DIR|NAME,…",
            help="Adapter folders, or names in the store. Default: every name in the store whose "
            "adapter was trained on the base.",
        ),
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="DIR", help=STORE_HELP)] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="cpu, mps, cuda or cuda:N; auto takes cuda, else mps, else cpu."
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Number format of the base's weights and of the adapters' slots: float32, bfloat16 "
            "or float16; auto is bfloat16 where the device multiplies it natively, else float32.",
        ),
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch, tag or commit of a hub id. Default: main."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Allow Python code among the base's files to run."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Serve adapters even if they were trained on another base."),
    ] = False,
    new_key: Annotated[
        str | None,
        typer.Option(
            "--new-key",
            metavar="NAME",
            help="Create an API key, store its hash in the file of --keys, print the key and exit.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = None,
    key_adapters: Annotated[
        str,
        typer.Option(
            "--key-adapters",
            metavar="A,B*,…",
            help="The models that the new key may use; '*' stands for any characters.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = "*",
    key_requests: Annotated[
        float | None,
        typer.Option(
            "--key-requests",
            help="The most requests a minute with the new key. Default: no limit.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = None,
    key_tokens: Annotated[
        float | None,
        typer.Option(
            "--key-tokens",
            help="The most tokens a minute with the new key. Default: no limit.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = None,
    key_admin: Annotated[
        bool,
        typer.Option(
            "--key-admin",
            help="The new key may register and remove adapters.",
            rich_help_panel=_KEY_PANEL,
        ),
    ] = False,
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
