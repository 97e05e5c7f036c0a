"""`pocketcnn publish`: writes a net with a model card for the Hugging Face hub, and uploads it if asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcnn.cli.arguments import TableOptions
from pocketcnn.cli.nets import load_for, load_net, model_path, trained_notes
from pocketcnn.cli.parsing import parse
from pocketcnn.errors import BadUsage


def publish(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Publish(TableOptions):
        model: Positional[str]
        """A model file, the folder of a run, or a trained net of the package (cifar10/resnet20)."""
        output: Path | None = None
        """Folder for model file, configuration and card; a README.md already in it is kept, and uploaded with the rest."""
        repo: str | None = None
        """Repository to upload to, owner/name; created when missing. Without --output its README.md is kept."""
        record: Path | None = None
        """Folder of the run that trained the net, if the file is not in it."""
        data: str | None = None
        """Measure the file on this data set's test images, for the card: a run did not measure its packed file."""
        license: str | None = None
        """License of the weights, as the hub spells it: apache-2.0; by default the card names none."""
        private: bool = False
        """Make the repository private, if it is created now."""

    given = parse(Publish, words, "publish")
    if given.output is None and given.repo is None:
        raise BadUsage("say where to: --output FOLDER, --repo OWNER/NAME, or both")
    from pocketcnn import hub
    from pocketcnn.hub.card import record_of
    from pocketcnn.support.runs import read_result

    path = model_path(given.model)
    record = record_of(path) if given.record is None else read_result(given.record)
    if given.data is not None:
        from pocketcnn.train import evaluate

        notes = trained_notes(given.model, path)
        data = load_for(notes, given.data, given.model, tables=given)
        record["stored_accuracy"], record["stored_data"] = evaluate(load_net(path), data)["test_accuracy"], data.name
    described: dict[str, Any] = {"record": record, "license": given.license}
    address = ""
    if given.repo is not None:
        private = given.private or None  # None: as the owner's settings say
        address = hub.push_to_hub(path, given.repo, folder=given.output, private=private, **described)
    elif given.output is not None:
        hub.save_pretrained(path, given.output, **described)
    if given.output is not None:
        print(f"folder: {given.output}")
    if address:
        print(address)
