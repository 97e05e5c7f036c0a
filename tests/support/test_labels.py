"""Labels that tell paths apart."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn.support.labels import labels_of

parts = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


@given(st.lists(parts, min_size=1, max_size=6, unique=True))
@settings(deadline=None)
def test_labels_are_different_and_end_as_their_paths_do(paths):
    labels = labels_of(paths)
    assert len(set(labels)) == len(paths)
    for label, path in zip(labels, paths, strict=True):
        assert label
        names = iter(Path(path).parts)
        assert all(word in names for word in label.split("/") if word)  # a subsequence, in order


def test_known_answers():
    assert labels_of(["runs/plain/seed0", "runs/ring/seed0"]) == ["plain", "ring"]
    assert labels_of(["runs/a/seed0", "runs/b/seed0", "runs/b/seed1"]) == ["a/seed0", "b/seed0", "b/seed1"]
    assert labels_of(["a/model", "b/model"], dull=["model"]) == ["a", "b"]
    assert labels_of(["a", "a"]) == ["a", "a"]
    assert labels_of([]) == []
