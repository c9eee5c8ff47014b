"""What holds of the house as a whole: one place for each thing, short files, names of their own."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lorakit"
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
MOST_LINES, MOST_FUNCTION_LINES = 300, 80

# Who writes a file without `files.whole`, and why. The list only ever gets shorter: a test fails
# where it names something that does so no more.
WRITERS = {
    "serving/keys.py:write_text",  # within write_file, with permissions of its own
    "files/journal.py:open",  # whose lines are there whole or not at all
    "files/shards.py:open",
    "experiments/pool.py:open",  # logs, which grow while somebody reads them
    "run/folder.py:open",
    "serving/vllm/child.py:open",
    "models/default.py:open",  # within a folder that becomes visible as a whole
}


def lines_of(name):
    return (SOURCE / name).read_text(encoding="utf-8").count("\n")


def functions(tree):
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def calls(tree):
    """(what is called, by its last name; how many positional arguments; the call) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
            yield name, len(node.args), node


def opens_to_write(call):
    """Whether a call of `open` names a mode that writes."""
    named = [k.value for k in call.keywords if k.arg == "mode"]
    modes = [a.value for a in (*call.args, *named) if isinstance(a, ast.Constant)]
    return any(
        isinstance(m, str) and set(m) <= set("rwaxbt+") and set(m) & set("wax+") for m in modes
    )


def is_method_of_os(call, name):
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == f"os.{name}"


def renames(name, count, call):
    """`os.replace`, `os.rename`, `shutil.move`, or `Path.replace` and `Path.rename`, which take one
    argument, as no method of a text and no method of the store does."""
    if is_method_of_os(call, name) and name in ("replace", "rename", "renames"):
        return True
    if name == "move" and ast.unparse(call.func) == "shutil.move":
        return True
    method = isinstance(call.func, ast.Attribute) and not call.keywords
    return method and name in ("replace", "rename") and count == 1


def test_only_files_renames_or_flushes():
    found = [
        f"{file}:{call.lineno}: {ast.unparse(call.func)}"
        for file, tree in TREES.items()
        if not file.startswith("files/")
        for name, count, call in calls(tree)
        if renames(name, count, call) or is_method_of_os(call, "fsync")
    ]
    assert found == []


def test_a_rename_is_recognised():
    """The check above can fail: these lines are found, and those of a text are not."""
    bad = "os.replace(a, b)\npath.rename(b)\npath.replace(b)\nshutil.move(a, b)"
    good = "text.replace('a', 'b')\nstore.rename(old, new)\nreplace(spec, rank=1)\nmove(a, b)"
    for text, expected in ((bad, 4), (good, 0)):
        assert sum(renames(*found) for found in calls(ast.parse(text))) == expected


def test_whole_files_are_written_in_one_place():
    found = {
        f"{file}:{name}"
        for file, tree in TREES.items()
        if file not in ("files/whole.py", "files/copying.py")
        for name, count, call in calls(tree)
        if (name in ("write_text", "write_bytes") and isinstance(call.func, ast.Attribute))
        or (name == "open" and opens_to_write(call))
        or ast.unparse(call.func) in ("json.dump", "torch.save", "yaml.dump")
    }
    assert found == WRITERS


def test_one_module_knows_the_header_of_safetensors():
    knows = [
        file for file in TREES if "data_offsets" in (SOURCE / file).read_text(encoding="utf-8")
    ]
    assert knows == ["files/header.py"]


def test_files_are_short_or_say_why():
    long = [name for name in TREES if lines_of(name) > MOST_LINES]
    assert not [
        f for f in long if "Longer than 300 lines: " not in str(ast.get_docstring(TREES[f]))
    ]
    unfounded = [f for f in TREES if "Longer than 300 lines" in str(ast.get_docstring(TREES[f]))]
    assert unfounded == long


def test_functions_are_short():
    found = {
        f"{file}:{f.name}"
        for file, tree in TREES.items()
        for f in functions(tree)
        if (f.end_lineno or 0) - f.lineno >= MOST_FUNCTION_LINES
    }
    assert not found


def test_no_two_classes_share_a_name():
    homes = defaultdict(list)
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(file)
    assert not {name: files for name, files in homes.items() if len(files) > 1}


@pytest.mark.parametrize("unit", ["KiB", "MiB", "GiB"])
def test_sizes_are_worded_in_decimal_units(unit):
    assert [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and unit in node.value
    ] == []


def test_sizes_are_worded_in_one_place():
    """No second text with a division by 1e6 or 1e9 and its unit beside it."""
    units = {"MB", "GB", "kB"}
    found = set()
    for file, tree in TREES.items():
        if file == "files/wording.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(v.value for v in node.values if isinstance(v, ast.Constant))
                divides = any(isinstance(n, ast.Div) for n in ast.walk(node))
                if divides and units & set(text.replace(",", " ").split()):
                    found.add(f"{file}:{node.lineno}")
    assert found == set()


PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "self_attn"}
PARTS |= {"input_layernorm", "post_attention_layernorm", "embed_tokens", "rotary_emb"}


def test_one_module_knows_the_parts_of_a_model_family():
    """In code, not in help or docstrings: attributes, and texts that are such a name."""
    knows = {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in PARTS)
        or (isinstance(node, ast.Constant) and node.value in PARTS)
    }
    allowed = {"execution/family.py", "lora/targets.py"}
    # What other readers make of the names.
    allowed |= {"adapters/export/families.py", "adapters/peft_experts.py"}
    allowed |= {"adapters/parameter_names.py"}
    assert knows - allowed == set()


def test_no_context_manager_replaces_a_module():
    replaces = {"set_submodule", "add_module", "register_module"}
    assert not [
        f"{file}:{f.name}"
        for file, tree in TREES.items()
        for f in functions(tree)
        if any("contextmanager" in ast.unparse(d) for d in f.decorator_list)
        and any(name in replaces for name, _, _ in calls(f))
    ]
