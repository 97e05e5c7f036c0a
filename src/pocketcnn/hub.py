"""Nets on the Hugging Face hub: one model file, its description for readers without tensors, and a card of its run.

A repository holds `model.safetensors`, as `pocketcnn.save` writes it; `config.json`, what that file says of itself; and
`README.md`, the model card. Saving, uploading and downloading are huggingface_hub's own, through its mixin. Only the file
and `config.json` are ever downloaded, and nothing in them is run.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint, zoo
from pocketcnn._files import make_folder, read_json, write_atomically, write_json
from pocketcnn._optional import optional_import
from pocketcnn.checkpoint import FILE, FORMAT
from pocketcnn.data import BUILT_IN
from pocketcnn.errors import CannotReach, MissingBase, PocketError
from pocketcnn.methods import METHODS
from pocketcnn.storage import Storage

_hub: Any = optional_import("huggingface_hub", extra="hub", purpose="the hub")

_TASK = "image-classification"


def save_pretrained(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    record: Mapping[str, Any] | None = None,
    license: str | None = None,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
) -> Path:
    """Writes a net as a repository of the hub: a folder with model file, configuration and card.

    Args:
        model: a net, written as `pocketcnn.save` does; or a model file or the folder of a run, whose file is taken as it
            is, stored small or locked.
        folder: where to; made when missing. A `README.md` that is there stays: it may have been edited.
        record: of the run that trained the net, the content of its `result.json`; for a file by default what `record_of`
            finds. Its `test_accuracy` counts for a file whose weights are as they were trained; `stored_accuracy`, where
            it has one, is that of the file.
        license: of the weights, as the hub spells it: `"apache-2.0"`. The card names none by default.
        notes: as in `pocketcnn.save`, for a net; so is `storage`.
        storage: type of the weights in the file.
    Returns:
        The folder.
    Raises:
        FileNotFoundError: there is no such model file.
        ValueError: notes or a storage for a file, which is taken as it is.
        CannotWrite: the folder cannot be written.
    """
    folder = make_folder(Path(folder))
    made = _made(model, record, license, notes, storage)
    made.save_pretrained(folder, model_card_kwargs={"repo_id": folder.resolve().name})
    return folder


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    record: Mapping[str, Any] | None = None,
    license: str | None = None,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Uploads what `save_pretrained` writes to a repository of the hub, in one commit.

    Args:
        model: as in `save_pretrained`; so are `record`, `license`, `notes` and `storage`.
        repo_id: `"owner/name"`; made when missing.
        record: as in `save_pretrained`.
        license: as in `save_pretrained`.
        notes: as in `save_pretrained`.
        storage: as in `save_pretrained`.
        private: whether a repository that is made now is private; as the owner's settings say by default.
        token: of the hub; by default the one that `hf auth login` kept.
        revision: the branch; `main` by default.
    Returns:
        The address of the commit.
    Raises:
        CannotReach: the hub does not answer, or refuses.
        FileNotFoundError: there is no such model file.
        ValueError: a name that no repository can have; notes or a storage for a file.
    """
    made = _made(model, record, license, notes, storage)
    with _reaching(repo_id, revision):
        return made.push_to_hub(
            repo_id,
            commit_message="Publish a net of pocketcnn",
            private=private,
            token=token,
            branch=revision,
            model_card_kwargs={"repo_id": repo_id},
        )


def from_pretrained(
    source: str | Path,
    *,
    base: nn.Module | None = None,
    device: torch.device | str = "cpu",
    passphrase: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Rebuilds a net of the hub, or of a folder that `save_pretrained` wrote, bit for bit, in evaluation mode.

    Args:
        source: a folder, or a repository, `"owner/name"`, of which model file and configuration are downloaded.
        base: as in `pocketcnn.load`; so are `device` and `passphrase`.
        device: where the net goes.
        passphrase: that the file was saved with.
        revision: branch, tag or commit of the repository; the newest of `main` by default.
        token: of the hub; by default the one that `hf auth login` kept.
        cache_dir: where downloads are kept; huggingface_hub's cache by default.
        force_download: download what is there already.
        local_files_only: take what was downloaded before, and ask no network.
    Raises:
        FileNotFoundError: no model file in the folder or repository.
        CannotReach: no such repository, or none that may be read; the hub does not answer.
        MissingBase: the net was not made by `create_model`, and must be given plain as `base`.
        ValueError: no folder, and a name that no repository can have.
        BrokenFile: or another error of `pocketcnn.load`.
    """
    with _reaching(str(source), revision):
        found = HubModel.from_pretrained(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            base=base,
            device=device,
            passphrase=passphrase,
        )
    return found.source


def record_of(path: Path) -> dict[str, Any]:
    """What is known of how a model file came to be: the record of its run, or the card of a net of the package.

    Args:
        path: of the file. Only what a run itself called `model.safetensors` has the record beside it.
    Returns:
        The content of `result.json`, with `stored_accuracy` where the file was measured as it is; nothing for other files.
    """
    if card := next((card for card in zoo.cards() if zoo.FOLDER / card.file == path), None):
        known = dataclasses.asdict(card)
        return {**known, "test_accuracy": card.trained_accuracy, "stored_accuracy": card.test_accuracy}
    beside = path.with_name("result.json")
    return read_json(beside) if path.name == FILE and beside.is_file() else {}


class HubModel(_hub.ModelHubMixin, library_name=FORMAT):  # type: ignore[call-arg]
    """What huggingface_hub's mixin saves, uploads and downloads: a net or a model file, and the record of its run.

    It holds the net instead of being one, since a net of any class can be published.
    """

    def __init__(
        self, source: nn.Module | Path, saving: Mapping[str, Any], record: Mapping[str, Any], license: str | None
    ) -> None:
        self.source, self.saving, self.record, self.license = source, saving, record, license
        self.file = Path()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.file = save_directory / FILE
        if isinstance(self.source, Path):
            write_atomically(self.file, self.source.read_bytes())
        else:
            checkpoint.save(self.source, self.file, **self.saving)
        write_json(save_directory / "config.json", checkpoint.read_header(self.file))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        base: nn.Module | None,
        device: torch.device | str,
        passphrase: str | None,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **configuration: Any,
    ) -> "HubModel":
        file = Path(model_id)
        if not file.is_dir():
            file = Path(_hub.hf_hub_download(
                model_id, FILE, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
            ))  # fmt: skip
        try:
            return cls(checkpoint.load(file, base=base, device=device, passphrase=passphrase), {}, {}, None)
        except MissingBase as error:
            raise MissingBase(str(error).replace("load(path,", f"from_pretrained({model_id!r},")) from error

    def generate_model_card(self, repo_id: str) -> Any:
        """The card of the file that was saved last, for a repository of that name."""
        header, size = checkpoint.read_header(self.file), self.file.stat().st_size
        notes, record = header["notes"], self.record
        data = Path(notes.get("data", "")).name  # of a folder of images its name alone, not where it lies
        # What the run measured were the numbers before they were stored small.
        accuracy = record.get("stored_accuracy", None if "storage" in header else record.get("test_accuracy"))
        results = None
        if accuracy is not None and data:
            results = [_hub.EvalResult(
                task_type=_TASK, dataset_type=BUILT_IN.get(data, data), dataset_name=data, dataset_split="test",
                metric_type="accuracy", metric_value=round(accuracy, 6),
            )]  # fmt: skip
        tags = [FORMAT, *dict.fromkeys(step["method"] for step in header["steps"])]
        data_id = BUILT_IN.get(data, "")
        metadata = _hub.ModelCardData(
            license=self.license,
            library_name=FORMAT,
            pipeline_tag=_TASK if "classes" in notes else None,
            tags=tags,
            datasets=[data_id] if "/" in data_id else None,
            metrics=["accuracy"] if results else None,
            model_name=repo_id.rpartition("/")[2],
            eval_results=results,
        )
        return _hub.ModelCard(f"---\n{metadata.to_yaml()}\n---\n{_card(repo_id, header, size, record, accuracy, data)}")


def _card(
    repo_id: str, header: Mapping[str, Any], size: int, record: Mapping[str, Any], accuracy: float | None, data: str
) -> str:
    """The card's text: what the net is, what it costs, how it was condensed and trained, how it is loaded."""
    notes, base = header["notes"], header["base"]
    stored = header.get("storage", {}).get("weights")
    rows = []
    if accuracy is not None:
        rows.append(("test accuracy of this file", f"{100 * accuracy:.2f} %"))
    if stored and "test_accuracy" in record:
        rows.append(("test accuracy before the weights were stored so", f"{100 * record['test_accuracy']:.2f} %"))
    rows.append(("file", f"{size:,} bytes, {f'weights as {stored}' if stored else 'every number as it was trained'}"))
    cost, latency = record.get("cost", {}), record.get("latency", {})
    if cost:
        rows += [
            ("trained numbers", f"{cost['trainable_params']:,}"),
            ("numbers that one image meets", f"{cost['generated_params']:,}"),
            ("multiply-adds an image", f"{cost['macs']:,}"),
        ]
    if latency:
        how = f"median of {latency['runs']}, batch {latency['batch']}, {latency['threads']} threads, {latency['dtype']}"
        rows.append(("latency in the run", f"{latency['median_ms']:.2f} ms ({how} on {latency['device']})"))
    if "classes" in notes:
        rows.append(("images", f"{data}, {'x'.join(map(str, notes['input_size']))} (channels x height x width)"))
        rows += [("mean, deviation", f"{_numbers(notes['mean'])}; {_numbers(notes['std'])}, of values from 0 to 1")]
        rows.append(("classes", f"{len(notes['classes'])}: {', '.join(map(str, notes['classes'][:10]))}"
                                f"{', ...' if len(notes['classes']) > 10 else ''}"))  # fmt: skip
    made = f"`{_call(base['name'], base['options'])}`" if base else "A net that pocketcnn did not make"
    steps = [_step(step, hidden="key" in header) for step in header["steps"]]
    given = [*([] if base else ["base=YourNet()"]), *(["passphrase=..."] if "key" in header else [])]
    lines = [
        f"# {repo_id.rpartition('/')[2]}",
        f"\n{made}{', condensed:' if steps else ', as it is.'}\n",
        *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        "\n| | |\n|---|---|",
        *(f"| {key} | {value} |" for key, value in rows),
        "\n## Loading it\n\n    pip install 'pocketcnn[hub]'\n\n```python",
        "from pocketcnn.hub import from_pretrained\n",
        f"net = from_pretrained({', '.join([repr(repo_id), *given])})\n```",
    ]
    if not base:
        lines.append("\n`YourNet()` makes the plain net that was condensed, freshly initialised.")
    if record.get("train"):
        settings = {**record["train"], "teacher": Path(record["train"].get("teacher", "")).name}
        shown = " ".join(f"{key}={value}" for key, value in settings.items() if value not in ("", [], None))
        lines.append(f"\n## Training\n\n{record['epochs']} epochs, seed {record['seed']}:\n\n    {shown}")
    return "\n".join(lines) + "\n"


def _step(step: Mapping[str, Any], *, hidden: bool) -> str:
    """A condensing in words; a seed that a passphrase hides is left out."""
    known = METHODS.get(step["method"])
    defaults = dataclasses.asdict(known.options()) if known else {}
    options = {key: value for key, value in step["options"].items() if defaults.get(key) != value}
    if hidden:
        options.pop("seed", None)
    sites = step["sites"]
    named = f"{sites[0]} to {sites[-1]}" if len(sites) > 1 else sites[0]
    summary = f": {known.summary} ({known.source})" if known else ""
    return f"`{_call(step['method'], options)}` in place of {len(sites)} of its parts, {named}{summary}"


def _call(name: str, options: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _made(
    model: nn.Module | str | Path,
    record: Mapping[str, Any] | None,
    license: str | None,
    notes: dict[str, Any] | None,
    storage: Storage | None,
) -> HubModel:
    """What is to be published, from a net, a model file or the folder of a run."""
    if isinstance(model, nn.Module):
        return HubModel(model, {"notes": notes, "storage": storage}, record or {}, license)
    path = checkpoint.file_in(Path(model))
    checkpoint.read_header(path)
    if notes is not None or storage is not None:
        raise ValueError(f"{path}: a model file is published as it is; leave out notes and storage, or give the net")
    return HubModel(path, {}, record_of(path) if record is None else record, license)


@contextlib.contextmanager
def _reaching(name: str, revision: str | None) -> Iterator[None]:
    """Says in one line what the hub did not give, and why."""
    errors = _hub.errors
    try:
        yield
    except PocketError:
        raise
    except errors.HFValidationError as error:
        raise ValueError(f"{name!r} is no folder that is there, and cannot be a repository (owner/name)") from error
    except errors.RevisionNotFoundError as error:
        raise CannotReach(
            f"{name}: the repository has no revision {revision!r}; leave it out for the newest"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CannotReach(
            f"{name}: the hub has no such repository, or you may not see it; check the name, or log in by `hf auth login`"
        ) from error
    except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, errors.EntryNotFoundError):
            raise  # a folder without a model file
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise FileNotFoundError(f"{name}: no {FILE} in this repository; only nets of pocketcnn load") from error
        status = getattr(getattr(error, "response", None), "status_code", "")
        raise CannotReach(
            f"{name}: the hub did not answer as it should ({type(error).__name__}{f' {status}' if status else ''}); check the "
            "network, and that you are logged in (`hf auth login`) where the repository is private or to be written"
        ) from error
