"""The demo's task, made here: a customer's message in, a ticket as JSON out.

    "hi there, my kettle stopped working after two days. order 4821. please send me a new one asap"
    {"category": "defect", "product": "kettle", "order": "4821", "wants": "replacement",
     "priority": "high"}

The answer follows from the message by rule:

    category  from what went wrong (delivery, defect, wrong item, billing, account, question)
    product   the product named, by its plain name ("electric kettle" is a kettle)
    order     the digits of the order number, null where none is given
    wants     what is asked for (refund, replacement, repair, information); information where
              nothing is asked for
    priority  high where the customer is in a hurry, low where there is none, normal otherwise

Every message is put together from parts in several orders, then made a little careless. Held-out
messages pair products with phrasings that never meet in training, so that remembering is no help.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lorakit.errors import ConfigError
from lorakit.files.whole import write_text

T = TypeVar("T")

PRODUCTS: dict[str, tuple[str, ...]] = {
    "kettle": ("kettle", "electric kettle"),
    "toaster": ("toaster", "two-slot toaster"),
    "blender": ("blender", "smoothie blender"),
    "desk lamp": ("desk lamp", "reading lamp"),
    "headphones": ("headphones", "wireless headphones"),
    "keyboard": ("keyboard", "mechanical keyboard"),
    "mouse": ("mouse", "computer mouse"),
    "monitor": ("monitor", "27 inch monitor"),
    "router": ("router", "wifi router"),
    "phone case": ("phone case", "leather phone case"),
    "backpack": ("backpack", "hiking backpack"),
    "tent": ("tent", "two-person tent"),
    "bike light": ("bike light", "rear bike light"),
    "running shoes": ("running shoes", "trail running shoes"),
    "rain jacket": ("rain jacket", "waterproof rain jacket"),
    "watch": ("watch", "sports watch"),
    "chair": ("chair", "office chair"),
    "bookshelf": ("bookshelf", "oak bookshelf"),
    "mattress": ("mattress", "foam mattress"),
    "coffee grinder": ("coffee grinder", "manual coffee grinder"),
    "frying pan": ("frying pan", "cast iron frying pan"),
    "speaker": ("speaker", "bluetooth speaker"),
    "camera": ("camera", "action camera"),
    "printer": ("printer", "laser printer"),
}

PROBLEMS: dict[str, tuple[str, ...]] = {
    "delivery": (
        "my {p} has not arrived yet",
        "I am still waiting for the {p} I ordered {n} days ago",
        "the parcel with my {p} seems to be lost",
        "tracking for the {p} has not moved for {n} days",
        "the {p} was supposed to be here last week",
        "the courier never came with my {p}",
    ),
    "defect": (
        "my {p} stopped working after {n} days",
        "the {p} arrived broken",
        "there is a crack in the {p}",
        "the {p} makes a strange noise",
        "the {p} fell apart on first use",
        "something is faulty with the {p} I got",
    ),
    "wrong item": (
        "I got a different colour of {p} than I chose",
        "you sent the wrong {p}",
        "the {p} in the box is not the model I picked",
        "I ordered one {p} and received {n}",
        "the {p} is the wrong size",
        "the box says {p} but something else was inside",
    ),
    "billing": (
        "I was charged twice for the {p}",
        "the invoice for my {p} shows the wrong amount",
        "my discount code was ignored when I bought the {p}",
        "you took {n} payments for a single {p}",
        "the price of the {p} on my card is too high",
        "I have no receipt for the {p}",
    ),
    "account": (
        "I cannot log in to see my {p} order",
        "the {p} does not show up in my account",
        "I forgot my password and need to track the {p}",
        "my {p} was ordered under an old email address",
        "the site locked me out after I bought the {p}",
        "please move the {p} to my new account",
    ),
    "question": (
        "does the {p} come with a warranty",
        "is the {p} available in green",
        "how do I clean the {p}",
        "how heavy is the {p}",
        "can the {p} be shipped to Norway",
        "will the {p} be in stock again soon",
    ),
}

WANTS: dict[str, tuple[str, ...]] = {
    "refund": (
        "I want my money back",
        "please refund me",
        "kindly return the amount to my card",
        "a refund would be fair",
    ),
    "replacement": (
        "please send me a new one",
        "I would like a replacement",
        "can you exchange it",
        "just ship another one",
    ),
    "repair": (
        "can someone repair it",
        "I want it fixed",
        "please tell me where I can get it repaired",
        "a repair would be enough",
    ),
    "information": (
        "please let me know",
        "can you tell me more",
        "what should I do now",
        "",
    ),
}

# A defect can be repaired; a missing parcel cannot.
WANTED_FOR: dict[str, tuple[str, ...]] = {
    "delivery": ("refund", "replacement", "information"),
    "defect": ("refund", "replacement", "repair", "information"),
    "wrong item": ("refund", "replacement", "information"),
    "billing": ("refund", "information"),
    "account": ("information",),
    "question": ("information",),
}

HURRY: dict[str, tuple[str, ...]] = {
    "high": ("this is urgent", "I need this sorted today", "asap please", "it cannot wait"),
    "normal": ("",),
    "low": ("no rush", "whenever you have time", "take your time", "it is not urgent"),
}

ORDERS = ("order {o}", "order number {o}", "my order is {o}", "ref {o}", "(order #{o})", "no. {o}")
GREETINGS = ("", "hi", "hello", "hi there", "good morning", "hey", "dear team", "hello support")
ENDINGS = ("", "", "thanks", "thank you", "best, {name}", "regards, {name}", "cheers")
NAMES = ("Ana", "Ben", "Chloe", "Deniz", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jun")


def tickets(rows: int, *, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Rows {"prompt": message, "completion": ticket as JSON}, no two messages alike.

    The same arguments give the same rows everywhere: only `random()` is drawn, which Python keeps
    the same for ever. held_out: from the pairs of product and phrasing that training never has
    (a fifth of all).
    """
    rng = random.Random(f"{seed}/{held_out}")
    pairs = [
        (category, phrase, product)
        for category, phrases in PROBLEMS.items()
        for phrase in phrases
        for product in PRODUCTS
        if is_held_out(phrase, product) == held_out
    ]
    seen: set[str] = set()
    while len(seen) < rows:
        message, ticket = _one(rng, *_pick(rng, pairs))
        if message not in seen:
            seen.add(message)
            yield {"prompt": message, "completion": json.dumps(ticket)}


def is_held_out(phrase: str, product: str) -> bool:
    """Whether this phrasing and product meet in held-out rows only. The seed does not change it."""
    return hashlib.sha256(f"{phrase}|{product}".encode()).digest()[0] % 5 == 0


def write_tickets(
    folder: str | Path, rows: int = 2000, eval_rows: int = 200, seed: int = 0
) -> tuple[Path, Path]:
    """Write `train.jsonl` and `valid.jsonl` into the folder; returns their paths.

    Raises:
        ConfigError: rows or eval_rows is below 1.
    """
    for name, value in (("rows", rows), ("eval_rows", eval_rows)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; it is {value}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "valid.jsonl"
    for path, n, apart in ((paths[0], rows, False), (paths[1], eval_rows, True)):
        lines = (json.dumps(t, ensure_ascii=False) for t in tickets(n, seed=seed, held_out=apart))
        write_text(path, "".join(f"{line}\n" for line in lines))
    return paths


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _one(
    rng: random.Random, category: str, phrase: str, product: str
) -> tuple[str, dict[str, Any]]:
    number = str(1000 + int(rng.random() * 9000)) if rng.random() < 0.8 else None
    wants = _pick(rng, WANTED_FOR[category])
    priority = _pick(rng, ("high", "normal", "normal", "low"))
    named = _pick(rng, PRODUCTS[product])
    problem = phrase.format(p=named, n=2 + int(rng.random() * 8))
    order = _pick(rng, ORDERS).format(o=number) if number else ""
    hurry = _pick(rng, HURRY[priority])
    parts = [_careless(rng, problem, named), _careless(rng, _pick(rng, WANTS[wants]), "")]
    for extra in (order, hurry):
        parts.insert(int(rng.random() * (len(parts) + 1)), extra)
    ending = _pick(rng, ENDINGS).format(name=_pick(rng, NAMES))
    body = _pick(rng, (". ", ", ", ". ", " - ")).join(p for p in parts if p)
    message = ", ".join(p for p in (_pick(rng, GREETINGS), body) if p)
    message = f"{message}. {ending}" if ending else message + _pick(rng, ("", ".", "!"))
    style = rng.random()
    if style < 0.3:
        message = message.lower()
    elif style < 0.7:
        message = message[0].upper() + message[1:]
    ticket = {
        "category": category,
        "product": product,
        "order": number,
        "wants": wants,
        "priority": priority,
    }
    return message, ticket


def _careless(rng: random.Random, text: str, keep: str) -> str:
    """Now and then two neighbouring letters change places, outside of what must stay readable."""
    words = text.split(" ")
    kept = set(keep.split(" "))
    for i, word in enumerate(words):
        if len(word) > 4 and word.isalpha() and word not in kept and rng.random() < 0.06:
            k = 1 + int(rng.random() * (len(word) - 2))
            words[i] = word[:k] + word[k + 1] + word[k] + word[k + 2 :]
    return " ".join(words)
