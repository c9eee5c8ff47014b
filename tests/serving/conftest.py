"""One server for the tests that only ask it something."""

import pytest
import torch
from servers import fill_store, saved_base, serving

from lorakit.adapters.load import load_adapter
from lorakit.adapters.store import Store
from lorakit.models import load_model


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A base's folder, a store, and a cache of fingerprints of their own."""
    root = tmp_path_factory.mktemp("serve")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    model = saved_base(root / "tiny-base")
    fill_store(root / "store", model, root / "scratch")
    yield root
    patch.undo()


@pytest.fixture(scope="session")
def running(house):
    with serving(house / "tiny-base", house / "store") as server:
        yield server


@pytest.fixture(scope="session")
def alone(house):
    """The oracle: greedy text of the model's own code with one adapter, one request at a time."""
    models = {}

    def answer(name, text, most):
        if name not in models:
            model, tokenizer = load_model(str(house / "tiny-base"), dtype="float32")
            if name != "tiny-base":
                load_adapter(model, Store(house / "store").resolve(name).folder)
            models[name] = model, tokenizer
        model, tokenizer = models[name]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        have = list(ids)
        with torch.no_grad():
            while len(have) < len(ids) + most:
                best = int(model(torch.tensor([have]), use_cache=False).logits[0, -1].argmax())
                if best in (1, 4):
                    break
                have.append(best)
        return tokenizer.decode(have[len(ids) :], skip_special_tokens=True)

    return answer
