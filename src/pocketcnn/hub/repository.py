"""Nets on the Hugging Face hub: the model file, its header as JSON, and a card of its run.

A repository holds `model.safetensors`, as `pocketcnn.save` writes it; `config.json`, the header of that file; and
`README.md`, the model card. Saving and loading go through huggingface_hub's mixin. Uploading does not: the mixin would make
the repository before the files are complete. Only the model file and `config.json` are downloaded, and nothing in them is
run.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint import FILE, FORMAT
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import Storage
from pocketcnn.data import BUILT_IN
from pocketcnn.errors import BrokenFile, CannotReach, ForeignFile
from pocketcnn.hub.card import TASK, public_name, record_of, write_card
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.optional import optional_import
from pocketcnn.support.schema import read_shaped

_hub: Any = optional_import("huggingface_hub", extra="hub", purpose="the hub")


@dataclass(frozen=True)
class _Configuration:
    """What tells `config.json` of a net of ours from others."""

    format: str


_CARD, _CONFIG = "README.md", "config.json"


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
        model: a net, which is written as by `pocketcnn.save`; or a model file or the folder of a run, whose file is copied,
            quantised or locked as it is. Of the path of its images in `notes["data"]` only the last part is published.
        folder: the folder to write, made when missing; not that of the model file. A `README.md` in it is kept: it may
            have been edited.
        record: of the run that trained the net, the content of its `result.json`; for a file by default the one that
            `record_of` finds. Its `test_accuracy` is that of the weights as they were trained; `stored_accuracy`, if it
            has one, is that of the file.
        license: of the weights, as the hub spells it: `"apache-2.0"`. The card names none by default.
        notes: as in `pocketcnn.save`; only for a net.
        storage: type of the weights in the file, as in `pocketcnn.save`; only for a net.
    Returns:
        The folder.
    Raises:
        FileNotFoundError: there is no such model file.
        ValueError: notes or a storage for a file, which is copied; or a folder whose files would be lost: that of the
            model file, or one with another `config.json`.
        CannotWrite: the folder cannot be written.
    """
    folder = Path(folder)
    return _saved(_made(model, record, license, notes, storage), folder, folder.resolve().name)


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    record: Mapping[str, Any] | None = None,
    license: str | None = None,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
    folder: str | Path | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Uploads a net to a repository of the hub, in one commit of the files that `save_pretrained` writes.

    Args:
        model: as in `save_pretrained`; so are `record`, `license`, `notes` and `storage`.
        repo_id: `"owner/name"`; made when missing.
        record: as in `save_pretrained`.
        license: as in `save_pretrained`.
        notes: as in `save_pretrained`.
        storage: as in `save_pretrained`.
        folder: keeps the files on this machine, as `save_pretrained` does. Its `README.md`, which may have been edited,
            replaces that of the repository. Without a folder, a `README.md` of the repository is kept.
        private: makes a new repository private or public; by default the owner's settings decide.
        token: of the hub; by default the one that `hf auth login` stored.
        revision: the branch; `main` by default.
    Returns:
        The address of the commit.
    Raises:
        CannotReach: the hub does not answer, or refuses.
        FileNotFoundError: there is no such model file.
        ValueError: a name that no repository can have; or as in `save_pretrained`.
        CannotWrite: as in `save_pretrained`; no repository is made.
    Example:
        >>> import pocketcnn as pc
        >>> pc.push_to_hub(pc.create_model("resnet20"), "you/resnet20")  # doctest: +SKIP
        'https://huggingface.co/you/resnet20/commit/...'
    """
    made = _made(model, record, license, notes, storage)
    with tempfile.TemporaryDirectory() as place:
        saved = _saved(made, Path(place) / "net" if folder is None else Path(folder), repo_id)
        with _reaching(repo_id, revision):
            api = _hub.HfApi(token=token)
            repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            stays = folder is None and api.file_exists(repo_id, _CARD, revision=revision)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=saved,
                commit_message="Publish a net of pocketcnn",
                revision=revision,
                allow_patterns=[FILE, _CONFIG, *([] if stays else [_CARD])],
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
        source: a folder; or a repository, `"owner/name"`, whose model file and configuration are downloaded.
        base: the plain net, as in `pocketcnn.load`.
        device: the device of the net, as in `pocketcnn.load`.
        passphrase: the one that the file was saved with.
        revision: branch, tag or commit of the repository; the newest commit of `main` by default.
        token: of the hub; by default the one that `hf auth login` stored.
        cache_dir: folder for downloads; huggingface_hub's cache by default.
        force_download: downloads the files again.
        local_files_only: uses earlier downloads and no network.
    Raises:
        FileNotFoundError: the folder or repository has no model file.
        CannotReach: there is no such repository, it may not be read, or the hub does not answer.
        MissingBase: the net was not made by `create_model`, and must be given plain as `base`.
        ValueError: `source` is no folder, and no repository can have this name.
        BrokenFile: `config.json` is damaged; this or another error of `pocketcnn.load`.
    Example:
        >>> import tempfile, pocketcnn as pc
        >>> from pocketcnn.hub import save_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(pc.create_model("resnet20"), folder)
        ...     type(pc.from_pretrained(folder)).__name__
        'ResNet'
    """
    try:
        with _reaching(str(source), revision, "; there is no such folder here either"):
            found = HubModel.from_pretrained(
                source,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise BrokenFile(f"{source}: its {_CONFIG} is damaged ({error}); delete or publish it again") from error
    return checkpoint.load(found.source, base=base, device=device, passphrase=passphrase)


class HubModel(_hub.ModelHubMixin, library_name=FORMAT):  # type: ignore[call-arg]
    """A net or a model file with the record of its run, for huggingface_hub's mixin to save and download.

    It holds the net instead of being one, because a net of any class can be published.
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
        notes = checkpoint.read_header(self.file)["notes"]
        if notes.get("data") != (name := public_name(notes.get("data"))):
            checkpoint.replace_notes_(self.file, {**notes, "data": name})
        write_json(save_directory / _CONFIG, checkpoint.read_header(self.file))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
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
        return cls(file, {}, {}, None)

    def generate_model_card(self, repo_id: str) -> Any:
        """Writes the card of the file that was saved last, for a repository of that name."""
        header, size = checkpoint.read_header(self.file), self.file.stat().st_size
        notes, record = ImageNotes.from_notes(header["notes"]), self.record
        data = public_name(notes.data or record.get("data", ""))
        measured = public_name(record.get("stored_data", data))
        # The run measured the weights before they were quantised.
        accuracy = record.get("stored_accuracy", None if "storage" in header else record.get("test_accuracy"))
        results = None
        if accuracy is not None and measured:
            results = [_hub.EvalResult(
                task_type=TASK, dataset_type=BUILT_IN.get(measured, measured), dataset_name=measured, dataset_split="test",
                metric_type="accuracy", metric_value=round(accuracy, 6),
            )]  # fmt: skip
        tags = [FORMAT, *dict.fromkeys(step["method"] for step in header["steps"])]
        data_id = BUILT_IN.get(data, "")
        metadata = _hub.ModelCardData(
            license=self.license,
            library_name=FORMAT,
            pipeline_tag=TASK if notes.classes else None,
            tags=tags,
            datasets=[data_id] if "/" in data_id else None,
            metrics=["accuracy"] if results else None,
            model_name=repo_id.rpartition("/")[2],
            eval_results=results,
        )
        text = write_card(repo_id, header, size, record, accuracy, data, measured)
        return _hub.ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def _made(
    model: nn.Module | str | Path,
    record: Mapping[str, Any] | None,
    license: str | None,
    notes: dict[str, Any] | None,
    storage: Storage | None,
) -> HubModel:
    """Reads the arguments of `save_pretrained` and `push_to_hub`: a net, a model file or the folder of a run."""
    if isinstance(model, nn.Module):
        return HubModel(model, {"notes": notes, "storage": storage}, record or {}, license)
    path = checkpoint.file_in(Path(model))
    checkpoint.read_header(path)
    if notes is not None or storage is not None:
        raise ValueError(f"{path}: a model file is published unchanged; leave out notes and storage, or give the net")
    return HubModel(path, {}, record_of(path) if record is None else record, license)


def _saved(made: HubModel, folder: Path, repo_id: str) -> Path:
    """Writes the three files into the folder, and returns it; the card names the repository."""
    if isinstance(made.source, Path) and made.source.resolve().parent == folder.resolve():
        raise ValueError(
            f"{folder}: the model file lies there, and the files beside it would be overwritten; give another folder"
        )
    if (config := folder / _CONFIG).is_file():
        try:
            ours = read_shaped(config, _Configuration, remedy="give another folder").format == FORMAT
        except (BrokenFile, ForeignFile):
            ours = False
        if not ours:
            raise ValueError(
                f"{config}: not the configuration of a net of the hub, and would be overwritten; give another folder"
            )
    made.save_pretrained(make_folder(folder), model_card_kwargs={"repo_id": repo_id})
    return folder


@contextlib.contextmanager
def _reaching(name: str, revision: str | None, here: str = "") -> Iterator[None]:
    """Turns errors of the hub into one line: what was missing, why, and where else it was looked for (`here`)."""
    errors = _hub.errors
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{name!r} is no existing folder, and cannot be a repository (owner/name)") from error
    except errors.RevisionNotFoundError as error:
        raise CannotReach(
            f"{name}: the repository has no revision {revision!r}; leave it out for the newest"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CannotReach(
            f"{name}: the hub has no such repository, or you may not see it{here}; check the name, or log in by "
            "`hf auth login`"
        ) from error
    except (errors.EntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError) as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise FileNotFoundError(
                f"{name}: no {FILE} in this repository; only nets of pocketcnn can be loaded"
            ) from error
        status = getattr(getattr(error, "response", None), "status_code", "")
        raise CannotReach(
            f"{name}: the hub gave no valid answer ({type(error).__name__}{f' {status}' if status else ''}){here}; check "
            "the network, and log in (`hf auth login`) if the repository is private or you want to write to it"
        ) from error
