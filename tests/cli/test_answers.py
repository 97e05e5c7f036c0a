"""The answers of the verbs: tables for people, one JSON document with --json, an example in each help, no colours if unwanted."""

import contextlib
import importlib
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcnn.cli import VERBS, main
from pocketcnn.cli.printing import answer, answer_in_json, one_answer
from pocketcnn.cli.verbs import EXAMPLES

WITHOUT_TABLE = {"picture", "publish"}  # they print the paths that they wrote
# A line of each verb that prints a table, and names that each of its rows has. RUN is a trained net.
LINES = {
    "shrink": ("RUN --max-bytes 9k", "net file_bytes accuracy"),
    "compare": (
        "--data digits --methods plain --output RUN",
        "net test_accuracy file_bytes latency_ms ratios_to_plain",
    ),
    "train": ("--preset demo --epochs 1 --limit 64 --width 0.25 --output RUN", "net test_accuracy seeds macs"),
    "distil": ("--teacher RUN --limit 64", "net test_accuracy macs"),
    "search": ("--data digits --limit 64", "label file_bytes latency_ms"),
    "evaluate": ("--model RUN", "net test_accuracy test_loss images"),
    "classify": ("digit.png --model RUN", "image classes"),
    "measure": ("resnet20 --runs 1", "net macs depth median_ms peak_bytes_training"),
    "bench": ("--quick", "what measured unit met"),
    "condense": ("--width 0.25 --output small.safetensors", "net macs size_bytes"),
    "sensitivity": ("RUN", "name error bytes_saved"),
    "plan": ("--width 0.25", "name becomes reason macs_after"),
    "pack": ("RUN --storage int8", "net file_bytes ratio"),
    "export": ("RUN", "file file_bytes ratio"),
    "models": ("resnet20*", "name trainable_params total_params steps"),
    "data": ("digits", "class train validation test"),
    "report": ("RUN", "net test_accuracy file_bytes"),
    "reproduce": ("ring_curve", "table net test_percent"),
    "explore": ("RUN --images 2", "net largest_difference"),
    "similarity": ("RUN --images 16", "net cka_of_own_layers"),
}
OTHER_LINES = [
    ("models --pretrained", "name test_accuracy size_bytes"),
    ("measure RUN --bytes", "part bytes share"),
    ("measure RUN --runs 1 --data digits", "net macs"),
    ("evaluate --model RUN --tta flip", "test_tta_accuracy"),
]


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training, and what the verb answered."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    words = LINES["train"][0].replace("RUN", str(folder)).split()
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run("train", *words, "--json") == 0
    return folder, shown.getvalue()


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """An empty folder to run in, where what takes long answers at once, and prints beside its answer."""
    Image = pytest.importorskip("PIL.Image")
    from pocketcnn.experiments.compare import Outcome
    from pocketcnn.experiments.reproduce import Reproduced
    from pocketcnn.experiments.search import Found
    from pocketcnn.experiments.sensitivity import Sensitivity, SiteEffect
    from pocketcnn.experiments.shrink import Shrunk
    from pocketcnn.explore import Page
    from pocketcnn.export import Exported, Speed
    from pocketcnn.support.runs import read_result

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 100).save("digit.png")
    result, here = read_result(trained[0]), Path("file")
    goal = {"what": "ring", "measured": 2.0, "unit": "x", "met": True}

    def bench(settings, folder, **_):
        print("noise")
        folder.mkdir(parents=True)
        (folder / "bench.json").write_text(json.dumps({"goals": [goal], "nets": [], "layers": []}))
        (folder / "table.md").write_text("a table")

    monkeypatch.setattr("pocketcnn.experiments.bench.run", bench)
    scores = {"accuracy": 0.5, "by_class": {"0": 0.5}}
    front = {"label": "ring", "file_bytes": 9, "latency_ms": float("nan")}
    row = {"table": "ring_curve", "net": "plain", "test_percent": {0: 91.5}}
    for name, found in {
        "experiments.shrink.shrink": Shrunk(here, None, here, "ring", (), 9, 8, None, scores, scores, 1.0),
        "experiments.compare.compare": Outcome([result], [], {}),
        "train.distil.distil": {**result, "start": {"validation_accuracy": 0.5}},
        "experiments.search.search": Found([front], [], "a table"),
        "experiments.sensitivity.sensitivity": Sensitivity("ring", 9, (SiteEffect("conv1", "3x3", 0.5, None, 9),)),
        "export.export": Exported(here, "onnx", 9, 9, None, False, 20, {"batch 1": 0.0}, (Speed(1, 1.0, 2.0, 0.5),), 1),
        "experiments.reproduce.reproduce": Reproduced({"ring_curve": [("net",)]}, {"ring_curve": []}, [row], []),
        "explore.write_page": Page(here, 9, 9, {"run": 0.0}),
    }.items():
        monkeypatch.setattr(f"pocketcnn.{name}", lambda *_, found=found, **__: print("noise") or found)
    return trained[0]


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def rows_of(text, names):
    """The rows of a document, each checked for some names."""
    document = json.loads(text, parse_constant=refuse)
    assert document["rows"]
    for row in document["rows"]:
        assert row.keys() >= set(names.split())
    return document["rows"]


def test_every_verb_has_a_line_here():
    assert LINES.keys() == VERBS.keys() - WITHOUT_TABLE == EXAMPLES.keys() - WITHOUT_TABLE


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - WITHOUT_TABLE))
def test_a_verb_with_a_table_answers_in_json(verb, place, trained, capfd):
    line, names = LINES[verb]
    if verb == "train":
        assert rows_of(trained[1], names)[0]["seeds"] == 1
        return
    words = [verb, *line.replace("RUN", str(place)).split()]
    assert run(*words, "--json") == 0
    rows_of(capfd.readouterr().out, names)
    assert sys.stdout is not sys.stderr


@pytest.mark.parametrize(("line", "names"), OTHER_LINES)
def test_other_tables_in_json(line, names, place, capfd):
    assert run(*line.replace("RUN", str(place)).split(), "--json") == 0
    rows_of(capfd.readouterr().out, names)


def test_mistakes_leave_stdout_empty(place, capfd):
    assert run("measure", "resnet19", "--json") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("UnknownModel")
    assert run("models", "resnet20") == 0
    assert capfd.readouterr().out.startswith("name"), "the next line of the process prints its table"


def test_values_in_json(capsys):
    with one_answer():
        answer_in_json()
        print("a notice")
        answer("a table", [{"path": Path("a/b"), "share": float("inf"), 3: (1, 2.5, None, True)}], text="ü")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": [{"path": "a/b", "share": None, "3": [1, 2.5, None, True]}], "text": "ü"}
    assert err == "a notice\n"


class Parsed(Exception):
    """Stops a verb once its words are parsed."""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_example_in_a_help_parses(verb, monkeypatch):
    module = importlib.import_module(f"pocketcnn.cli.verbs.{verb}")

    def stop_after(parse):
        def parsed(*words, **options):
            parse(*words, **options)
            raise Parsed

        return parsed

    for name in {"parse", "parse_surgery"} & vars(module).keys():
        monkeypatch.setattr(module, name, stop_after(getattr(module, name)))
    program, first, *words = shlex.split(EXAMPLES[verb])
    assert (program, first) == ("pocketcnn", verb)
    with pytest.raises(Parsed):
        getattr(module, verb)(words)


COLOURLESS = """
import sys
from pocketcnn.cli import VERBS, main
for words in [*([verb, "--help"] for verb in VERBS), ["--help"], ["models", "resnet20"], ["report", sys.argv[1]],
              ["measure", "resnet19"], ["plan", "--epohcs", "3"]]:
    try: main(words)
    except SystemExit as left: assert (left.code or 0) == (2 if words[-1] in ("resnet19", "3") else 0), words
print("the end")
"""


@pytest.mark.parametrize("on_terminal", [True, False])
def test_no_colours_under_no_color_and_away_from_a_terminal(on_terminal, trained):
    words = [sys.executable, "-c", COLOURLESS, str(trained[0])]
    wanted = {"TERM": "xterm-256color", "COLUMNS": "200"} | ({"NO_COLOR": "1"} if on_terminal else {})
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")} | wanted
    if not on_terminal:
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        shown = done.stdout
    else:
        ours, theirs = pty.openpty()
        with subprocess.Popen(words, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while part := os.read(ours, 1 << 16):
                    shown += part
        os.close(ours)
    assert b"the end" in shown
    assert b"UnknownModel" in shown
    assert "━" in shown.decode() or not on_terminal, "a table is drawn"
    assert b"\x1b" not in shown
