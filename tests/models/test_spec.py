"""A net in words: what is written is read back, and what people write is read as before."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pocketcnn.models.recipes import RECIPES
from pocketcnn.models.spec import NetSpec, parse_options, spell

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
STRINGS = st.text() | st.text(alphabet="a1,.:=*'\"(){}[] \\-")
PLAIN = NUMBERS | STRINGS
VALUES = PLAIN | st.lists(PLAIN, max_size=3).map(tuple) | st.dictionaries(STRINGS, PLAIN, max_size=3)
KEYS = st.from_regex("[a-z_]+", fullmatch=True)


@given(options=st.dictionaries(KEYS, VALUES | st.dictionaries(STRINGS, VALUES, max_size=2), max_size=4))
@example(options={"a": "1", "b": "True", "c": "", "d": "x}", "e": "{", "f": "'", "g": "(1, 2)"})
@example(options={"a": {"b": {"c": (1, 2)}, "d": []}, "e": (), "f": {}, "g": -0.0, "h": 1e300})
def test_what_is_spelled_is_read_back(options):
    name, read = parse_options(spell("net_1", options))
    assert (name, repr(read)) == ("net_1", repr(options))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ring", {}),
        ("ring:", {}),
        ("ring:,size=0.1,", {"size": 0.1}),
        ("ring:size=0.1,seed=3", {"size": 0.1, "seed": 3}),
        ("ring:include=layer[23].*,size=1", {"include": "layer[23].*", "size": 1}),
        ("ring:include=[lm]*,size=1", {"include": "[lm]*", "size": 1}),
        ("ring:include=layer{1,2},size=1", {"include": "layer{1,2}", "size": 1}),
        ("ring:include=('layer2', 'layer3'),size=1", {"include": ("layer2", "layer3"), "size": 1}),
        ("ring:level={'a,b': 'early', 'c': {'d': 1}},size=1", {"level": {"a,b": "early", "c": {"d": 1}}, "size": 1}),
        ("net:stem=small,width=.5,bias=False,dt=None", {"stem": "small", "width": 0.5, "bias": False, "dt": None}),
        ("net:a=b=c", {"a": "b=c"}),
    ],
)
def test_what_people_write(text, options):
    assert parse_options(text) == (text.partition(":")[0], options)


@pytest.mark.parametrize("text", ["ring:size", "ring:seed=3,size", "ring:size,seed=3"])
def test_an_option_without_a_value_is_named(text):
    with pytest.raises(ValueError, match=f"'{text}': option 'size' has no value; write ring:size=VALUE"):
        parse_options(text)


def test_ordinary_options_are_written_without_quotes():
    """Labels of records and folders of runs are made so."""
    for recipe in RECIPES.values():
        for method, options in recipe.steps:
            shown = ",".join(f"{key}={value}" for key, value in options.items())
            assert spell(method, options) == f"{method}:{shown}".removesuffix(":")
            assert parse_options(spell(method, options)) == (method, options)


def test_labels():
    model = {"in_channels": 3, "num_classes": 10, "stem": "small", "width": 0.123456}
    assert NetSpec("resnet20", "ring", {"size": 0.1}, model).label == "resnet20 stem=small width=0.1235 ring:size=0.1"
    assert NetSpec("resnet20", model_options={"width": 1.0}).label == "resnet20 plain"


def test_labels_are_spelled_as_they_always_were():
    """They name the folders of runs: one more quotation mark, and an old run is not found again."""
    options = {"include": "[cl]*.conv2", "size": 0.5, "level": {"layer1": "early"}, "scheme": "affine"}
    label = NetSpec("resnet20", "ring", options, {"width": 0.25, "num_classes": 10}).label
    assert label == "resnet20 width=0.25 ring:include=[cl]*.conv2,size=0.5,level={'layer1': 'early'},scheme=affine"
    assert NetSpec("resnet20").label == "resnet20 plain"
