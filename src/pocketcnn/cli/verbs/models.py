"""`pocketcnn models`: lists the nets that can be made by name, or the trained nets in the package."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pocketcnn.cli.arguments import AnswerOptions
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer
from pocketcnn.errors import UnknownModel, UnknownPretrained
from pocketcnn.support.tables import columns


def models(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Models(AnswerOptions):
        pattern: Positional[str] = "*"
        """Shell pattern of names: "*ring*"."""
        pretrained: bool = False
        """List the trained nets in the package, with the test accuracy of each file."""

    given = parse(Models, words, "models")
    if given.pretrained:
        _answer_pretrained(given.pattern)
        return
    import torch

    from pocketcnn.cost import count_params
    from pocketcnn.models.recipes import RECIPES, create_model, list_models
    from pocketcnn.models.spec import spell

    names = list_models(given.pattern)
    if not names:
        raise UnknownModel(given.pattern, list_models())
    width = max(24, *(len(name) + 2 for name in names))
    lines, rows = [f"{'name':<{width}}{'trainable':>12}{'total':>12}  made of"], []
    for name in names:
        with torch.device("meta"):
            trainable, total = count_params(create_model(name))
        recipe = RECIPES.get(name)
        steps = [spell(method, options) for method, options in recipe.steps] if recipe else []
        made = f"{recipe.base} + {' + '.join(steps)} ({recipe.source})" if recipe else "plain"
        lines.append(f"{name:<{width}}{trainable:>12,}{total:>12,}  {made}")
        origin = {"base": recipe and recipe.base, "steps": steps, "source": recipe and recipe.source}
        rows.append({"name": name, "trainable_params": trainable, "total_params": total, **origin})
    answer("\n".join(lines), rows)


def _answer_pretrained(pattern: str) -> None:
    """Answers with a table of the trained nets in the package."""
    from pocketcnn import zoo

    found = zoo.cards(pattern)
    if not found:
        raise UnknownPretrained(pattern, [card.title for card in zoo.cards()])
    cells = [("data/name", "accuracy", "bytes", "storage", "trainable", "seed", "epochs")]
    for card in found:
        accuracy, size, trainable = (
            f"{100 * card.test_accuracy:.2f}%",
            f"{card.size_bytes:,}",
            f"{card.trainable_params:,}",
        )
        cells.append((card.title, accuracy, size, card.storage, trainable, f"{card.seed}", f"{card.epochs}"))
    answer(columns(cells), [{**dataclasses.asdict(card), "name": card.title} for card in found])
