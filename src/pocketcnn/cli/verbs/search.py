"""`pocketcnn search`: looks for the most accurate nets that meet a budget of bytes, multiply-adds or time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions, DataArguments, ModelArguments, load_data, model_options_of
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import answer, import_lightning
from pocketcnn.support.ranges import Count, Positive


def search(words: Sequence[str]) -> None:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Search(AnswerOptions, DataArguments, ModelArguments):
        model: str = "resnet20"
        """The plain net by name that candidates are made from, at an eighth of its width up to all of it, if it has a width:
        resnet20, timm:resnet10t, nets/mine.py:build."""
        methods: tuple[str, ...] | None = None
        """plain, and methods, several in turn if joined by a plus: ring pde+ring. Options given are fixed: ring:level=stage.
        By default all methods that can condense the net."""
        max_bytes: str | None = None
        """Largest file in bytes: 100k, 0.1M, 100_000; k is 1000."""
        max_macs: str | None = None
        """Most multiply-adds per image: 20M."""
        max_ms: Positive | None = None
        """Longest time per image on one CPU thread, in milliseconds."""
        trials: Count = 30
        """Number of candidates, 1 or more, that all workers together train; candidates over the budget are not trained."""
        storage: str | None = None
        """Database that workers share: sqlite:///FILE, postgresql+psycopg://HOST/NAME; by default search.db in the output
        folder."""
        study: str = "pocketcnn"
        """Name of the search in the database."""
        output: Path = Path("runs/search")
        """Folder of the search, one for all workers; the same command joins the search, or resumes where it stopped."""
        accelerator: Literal["auto", "cpu", "gpu"] = "auto"
        """Kind of device; each worker uses one device."""
        preset: str = "default"
        """Training settings to start from; the flags below change them."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Search, words, "search", method_help, train=preset_of(words, PRESETS))
    import_lightning()
    from pocketcnn.experiments.search import search as run
    from pocketcnn.experiments.search.space import Budgets, Space, parse_size
    from pocketcnn.models.recipes import check_name
    from pocketcnn.models.spec import parse_model

    sizes = (given.max_bytes, given.max_macs)
    max_bytes, max_macs = (None if text is None else parse_size(text) for text in sizes)
    budgets = Budgets(max_bytes, max_macs, given.max_ms)
    model, model_options = parse_model(given.model)
    check_name(model)
    data = load_data(given)
    space = Space.of(model, {**model_options_of(given, data, model), **model_options}, given.methods)
    found = run(
        data, given.train, given.output, trials=given.trials, space=space, budgets=budgets, storage=given.storage,
        study=given.study, accelerator=given.accelerator,
    )  # fmt: skip
    figure, nets = given.output / "pareto.svg", given.output / "front"
    answer(found.table, found.front, figure=figure, nets=nets, trials=given.output / "trials.json")
    print(f"figure: {figure}, nets: {nets}")
