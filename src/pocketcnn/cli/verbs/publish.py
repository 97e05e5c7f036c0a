"""`pocketcnn publish`: writes a net with a model card for the Hugging Face hub, and uploads it if asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcnn.cli.arguments import ForeignArguments, TableOptions
from pocketcnn.cli.images import completed, load_for
from pocketcnn.cli.nets import open_net
from pocketcnn.cli.parsing import parse
from pocketcnn.errors import BadUsage


def publish(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Publish(ForeignArguments, TableOptions):
        model: Positional[str]
        """A model file, the folder of a run, a trained net of the package (cifar10/resnet20), or a net by name with --weights."""
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

    opened = open_net(given.model, given).needs()
    if given.record is not None:
        record = read_result(given.record)
    else:
        record = {} if opened.path is None else record_of(opened.path)
    if given.data is not None:
        from pocketcnn.train import evaluate

        data = load_for(opened.notes, given.data, given.model, tables=given)
        opened = completed(opened, data)
        record["stored_accuracy"], record["stored_data"] = evaluate(opened.net, data)["test_accuracy"], data.name
    described: dict[str, Any] = {"record": record, "license": given.license}
    if opened.path is None:
        described["notes"] = opened.header
    source = opened.path or opened.net  # a file is published as it is, quantised or locked
    address = ""
    if given.repo is not None:
        private = given.private or None  # None: as the owner's settings say
        address = hub.push_to_hub(source, given.repo, folder=given.output, private=private, **described)
    elif given.output is not None:
        hub.save_pretrained(source, given.output, **described)
    if given.output is not None:
        print(f"folder: {given.output}")
    if address:
        print(address)
