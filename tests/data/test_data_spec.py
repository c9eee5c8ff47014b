import pytest

from lorakit.data import DataSpec
from lorakit.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data": "x.jsonl"}, "data must be a list"),
        ({"max_rows": 0}, "max_rows must be a whole number of at least 1; it is 0"),
        ({"max_length": True}, "max_length must be a whole number"),
        ({"max_length": 1}, "a row needs 2 tokens"),
        ({"too_long": "crop"}, "too_long is 'crop'; did you mean 'drop'"),
        ({"eval_share": 1.0}, r"eval_share must lie in \[0, 1\)"),
        ({"prompt": "{a}"}, "prompt is given without completion"),
        ({"completion": "{a}"}, "completion is given without prompt"),
        ({"system": "Be brief.", "template": "raw"}, "system has no place in template 'raw'"),
        ({"template": ""}, "template is empty"),
    ],
)
def test_a_value_out_of_range(values, says):
    with pytest.raises(ConfigError, match=says):
        DataSpec(**values)


def test_every_field_explains_itself():
    assert all(len(f.metadata["help"]) > 20 for f in DataSpec.__dataclass_fields__.values())
