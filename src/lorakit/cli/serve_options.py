"""The options of `lorakit serve` that belong to no spec."""

from typing import Annotated

import typer

from lorakit.adapters.store.default import STORE_HELP

_KEY_PANEL = "Creating a key"

Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        "--model",
        help="The base model: the built-in smollm2-135m, a model folder, a .gguf file, or a "
        "Hugging Face hub id. Default: the one that the adapters were trained on; smollm2-135m "
        "where there are none.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapters",
        metavar="DIR|NAME,…",
        help="Adapter folders, or names in the store. Default: every name in the store whose "
        "adapter was trained on the base.",
    ),
]
StoreOption = Annotated[str | None, typer.Option("--store", metavar="DIR", help=STORE_HELP)]
Device = Annotated[
    str,
    typer.Option("--device", help="cpu, mps, cuda or cuda:N; auto takes cuda, else mps, else cpu."),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Number format of the base's weights and of the adapters' slots: float32, bfloat16 "
        "or float16; auto is bfloat16 where the device multiplies it natively, else float32.",
    ),
]
BaseDtype = Annotated[
    str | None,
    typer.Option(
        "--base-dtype",
        help="How the frozen weights of the blocks' linear layers are held: nf4 or int4 (a quarter "
        "of bfloat16's memory), int8 or fp8 (half of it). full: in --dtype. Default: as all served adapters were trained, else full.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub id. Default: main."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Allow Python code among the base's files to run."),
]
IgnoreAdapter = Annotated[
    bool,
    typer.Option(
        "--ignore-adapter",
        help="Take the base alone from a folder that also holds an adapter (adapter_config.json).",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Serve adapters even if they were trained on another base."),
]
NewKey = Annotated[
    str | None,
    typer.Option(
        "--new-key",
        metavar="NAME",
        help="Create an API key, store its hash in the file of --keys, print the key and exit.",
        rich_help_panel=_KEY_PANEL,
    ),
]
KeyAdapters = Annotated[
    str,
    typer.Option(
        "--key-adapters",
        metavar="A,B*,…",
        help="The models that the new key may use; '*' stands for any characters.",
        rich_help_panel=_KEY_PANEL,
    ),
]
KeyRequests = Annotated[
    float | None,
    typer.Option(
        "--key-requests",
        help="The most requests a minute with the new key. Default: no limit.",
        rich_help_panel=_KEY_PANEL,
    ),
]
KeyTokens = Annotated[
    float | None,
    typer.Option(
        "--key-tokens",
        help="The most tokens a minute with the new key. Default: no limit.",
        rich_help_panel=_KEY_PANEL,
    ),
]
KeyAdmin = Annotated[
    bool,
    typer.Option(
        "--key-admin",
        help="The new key may register and remove adapters.",
        rich_help_panel=_KEY_PANEL,
    ),
]
