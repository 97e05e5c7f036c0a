"""`pocketcnn search`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import DataArguments, ModelArguments, load_data, model_options_of
from pocketcnn.cli.parsing import method_help, parse, preset_of


def search(words: Sequence[str]) -> None:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Search(DataArguments, ModelArguments):
        model: str = "resnet20"
        """The plain net that candidates are made of; they are between an eighth of its width and all of it."""
        methods: tuple[str, ...] | None = None
        """plain, and methods, in turn where joined: ring pde+ring; options given are not searched: ring:level=stage. All
        that find something to do in the net, by default."""
        max_bytes: str | None = None
        """Largest file: 100k, 0.1M, 100_000; k is 1000."""
        max_macs: str | None = None
        """Most multiply-adds of an image: 20M."""
        max_ms: float | None = None
        """Longest time for an image, on one thread of the CPU, in milliseconds."""
        trials: int = 30
        """How many candidates are trained, by all workers together; those over budget never are."""
        storage: str | None = None
        """Database that workers share: sqlite:///FILE, postgresql+psycopg://HOST/NAME; search.db in the output folder by
        default."""
        study: str = "pocketcnn"
        """Name of the search in the database."""
        output: Path = Path("runs/search")
        """Folder of the search, one for all workers; the same command joins in, or goes on where it stopped."""
        accelerator: Literal["auto", "cpu", "gpu"] = "auto"
        """Kind of device; a worker uses one."""
        preset: str = "default"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Search, words, "search", method_help(), train=preset_of(words, PRESETS))
    from pocketcnn.experiments.search import search as run
    from pocketcnn.experiments.search.space import Budgets, Space, parse_size
    from pocketcnn.models.spec import parse_options

    sizes = (given.max_bytes, given.max_macs)
    max_bytes, max_macs = (None if text is None else parse_size(text) for text in sizes)
    budgets = Budgets(max_bytes, max_macs, given.max_ms)
    data = load_data(given)
    model, model_options = parse_options(given.model)
    space = Space.of(model, {**model_options_of(given, data), **model_options}, given.methods)
    found = run(
        data, given.train, given.output, trials=given.trials, space=space, budgets=budgets, storage=given.storage,
        study=given.study, accelerator=given.accelerator,
    )  # fmt: skip
    print(found.table)
    print(f"figure: {given.output / 'pareto.svg'}, nets: {given.output / 'front'}")
