"""Shrinking a trained net to a budget of bytes: choose how, fit, distil, store, and measure before and after.

Candidates are the net in fewer bits, with zeros, and with a ring of windows in the place of its convolutions, for which the
places that suffer most may stay as they are. Each is made as large as the budget allows. The net with zeros, and the two rings
that start best, are distilled for a while, and the best of these for the rest of the time. Choices are made on validation images, or on outputs; the test
images are used for the report only.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import prune_
from pocketcnn.data import DataSet
from pocketcnn.errors import NothingFits, NothingToCondense
from pocketcnn.experiments.search.space import parse_size
from pocketcnn.experiments.sensitivity import sensitivity
from pocketcnn.experiments.shrink import candidates as ways
from pocketcnn.experiments.shrink.candidates import Candidate
from pocketcnn.experiments.shrink.judges import ByLabels, ByOutputs, Judge, Scores
from pocketcnn.experiments.shrink.page import write_page
from pocketcnn.models.spec import PLAIN_METHOD, parse_method
from pocketcnn.support.calls import ExampleSize, Inputs, as_inputs
from pocketcnn.support.files import make_folder, read_json, write_atomically, write_json
from pocketcnn.support.runs import MODEL
from pocketcnn.train import PRESETS, TrainConfig
from pocketcnn.train.teacher import digest_of

__all__ = ["Candidate", "Shrunk", "shrink"]
MINUTES = 10.0
RECORD = "shrink.json"
_KEPT = (0, 1, 2, 4, 8)  # numbers of most sensitive places that stay as they are
_TRIED = 2  # fitted candidates that are distilled for a while, beside the net with zeros
_TRIAL = 0.25  # share of the time for that
_ROOM, _MORE_ZEROS = (
    100,
    8,
)  # part of the budget that is left; hundredths of the weights that may become zero to keep it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shrunk:
    """The outcome: the files, the candidates in the order of their scores, and scores and bytes before and after.

    `before` and `after` hold `accuracy` and `by_class` on test images; or, without labels, `error` of the outputs and, for
    scores of classes, `agreement`.
    """

    path: Path
    onnx: Path | None
    page: Path
    label: str
    candidates: tuple[Mapping[str, Any], ...]
    bytes_before: int
    bytes_after: int
    onnx_bytes: int | None
    before: Scores
    after: Scores
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.label}: {self.bytes_before:,} -> {self.bytes_after:,} bytes "
            f"({self.bytes_after / self.bytes_before:.3g}x), in {self.seconds / 60:.1f} minutes"
        ]
        if "accuracy" in self.after:
            lines.append(f"test accuracy {100 * self.before['accuracy']:.2f} % -> {100 * self.after['accuracy']:.2f} %")
        if "error" in self.after:
            same = f", same class for {100 * self.after['agreement']:.1f} %" if "agreement" in self.after else ""
            lines.append(f"error of the outputs {self.after['error']:.3g} of their variance{same}")
        return "\n".join(lines)


def shrink(
    net: nn.Module,
    data: DataSet | Inputs,
    *,
    max_bytes: int | str,
    method: str | None = None,
    storage: str | None = None,
    minutes: float = MINUTES,
    notes: ImageNotes | Mapping[str, Any] | None = None,
    sensitive: bool = True,
    train: TrainConfig | None = None,
    onnx: bool = True,
    seed: int = 0,
    output: str | Path = "runs/shrink",
) -> Shrunk:
    """Makes a trained net small enough for a budget of bytes, with as little loss as the time allows.

    The same call resumes where it was interrupted, and reads what it finished.

    Args:
        net: any trained net; it is left alone.
        data: labelled images of the net's classes; or examples without labels as the net gets them, a tensor or a tuple of
            tensors whose first axis counts them: the small net is then trained to return what the net returns.
        max_bytes: the longest model file: 100_000 or "100k".
        method: the method that condenses the net, with its options: `"ring:scheme=windows"`; `"plain"` for none. Without a
            `size` the largest that fits is taken. By default the best of several.
        storage: number type in the file, `"float32"`, `"float16"` or `"int8"`; by default the best that fits.
        minutes: of training, about; more than 0.
        notes: what the net expects of its images: `mean`, `std`, `classes`. By default as in the data.
        sensitive: tries to leave the most sensitive places as they are, see `pocketcnn.sensitivity`.
        train: settings of the distillation, by default `PRESETS["distil"]`; epochs follow from the time.
        onnx: also writes `model.onnx`.
        seed: of all that is random.
        output: folder of `model.safetensors`, `model.onnx`, `report.html`, `shrink.json` and the candidates' runs.
    Raises:
        NothingFits: the budget is below what the untouched layers take, which the message names.
        BadData: the net does not take the images, or knows other classes.
        ValueError: an option out of range, or the folder holds another shrinking.
    Example:
        >>> import pocketcnn as pc
        >>> from pocketcnn.data import load
        >>> net = pc.create_model("mnist_net", pretrained="mnist")
        >>> found = pc.shrink(net, load("mnist"), max_bytes="8k", minutes=5)  # doctest: +SKIP
        >>> small = pc.load(found.path, base=net)  # doctest: +SKIP
    """
    budget = parse_size(max_bytes) if isinstance(max_bytes, str) else max_bytes
    if budget < 1 or not minutes > 0:
        raise ValueError(f"max_bytes and minutes must be more than 0, not {max_bytes} and {minutes}")
    known = notes if isinstance(notes, ImageNotes) else ImageNotes.from_notes(notes or {})
    config = dataclasses.replace(train or PRESETS["distil"], seed=seed)
    if bool(known.mean) != bool(known.std):
        raise ValueError("notes have a mean without a std, or a std without a mean; give both or neither")
    judge: Judge
    if isinstance(data, DataSet):
        judge = ByLabels(net, data, known, config)
        seen = {**ImageNotes.of(known.applied_to(data)).as_dict(), **{k: v for k, v in known.as_dict().items() if v}}
    else:
        judge, seen = ByOutputs(net, data, seed), {k: v for k, v in known.as_dict().items() if v}
        if isinstance(data, Tensor) and data.dim() == 4:
            seen.setdefault("input_size", list(data.shape[1:]))
    asked = {
        "net": digest_of(net),
        "structure": hashlib.sha256(repr(net).encode()).hexdigest()[:16],
        "notes": json.loads(json.dumps(seen)),
        "data": judge.fingerprint,
        "max_bytes": budget,
        "method": method,
        "storage": storage,
        "minutes": minutes,
        "sensitive": sensitive,
        "train": json.loads(json.dumps(dataclasses.asdict(config))),
    }
    book = _Book(make_folder(Path(output)), asked)
    found = _candidates(net, judge, book, budget, method, storage, seen, sensitive)
    small, chosen = _best(judge, book, found, 60 * minutes)
    size: ExampleSize = tuple(seen.get("input_size", ())) or tuple(tuple(one.shape[1:]) for one in as_inputs(data))
    return _written(net, small, chosen, judge, book, seen, budget, size if onnx else None)


class _Book:
    """`shrink.json`: what was asked for, and each finding, so that nothing is done twice."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder, self._path = folder, folder / RECORD
        self._content: dict[str, Any] = read_json(self._path) if self._path.is_file() else {"asked": asked, "found": {}}
        if other := [key for key, value in asked.items() if self._content.get("asked", {}).get(key) != value]:
            raise ValueError(
                f"{folder}: holds another shrinking ({other[0]} differs); give another output folder, or delete this one"
            )
        self._began = time.monotonic() - self.found("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """The time that was spent, earlier calls included."""
        return time.monotonic() - self._began

    def found(self, key: str, default: Any = None) -> Any:
        """A finding, if it was noted."""
        return self._content["found"].get(key, default)

    def note(self, key: str, value: Any) -> Any:
        """Notes a finding, and returns it."""
        self._content["found"] |= {key: value, "seconds": self.seconds}
        write_json(self._path, self._content)
        return value


def _candidates(
    net: nn.Module,
    judge: Judge,
    book: _Book,
    budget: int,
    method: str | None,
    storage: str | None,
    seen: Mapping[str, Any],
    sensitive: bool,
) -> list[Candidate]:
    """The candidates that fit the budget; only the plain net if it does."""
    if (held := book.found("candidates")) is not None:
        return [Candidate(**entry) for entry in held]
    storages = ways.storages_of(storage)
    least = storages[-1]
    room = budget - budget // _ROOM  # training makes numbers less alike, which take more bytes in a packed file then
    found: list[Candidate | None] = []
    if method is not None and method != PLAIN_METHOD:
        name, options = parse_method(method)
        found = [ways.of_method(net, name, options, room, least, seen)]
    elif (whole := ways.plain(net, budget, storages, seen)) is not None:
        _log.info("%s fits as it is", whole.label)
        found = [whole]
    else:
        found = [ways.pruned(net, room, least, seen)]
        if method is None:
            found += _rings(net, judge, room, least, seen, book.folder if sensitive else None)
    fitting = [one for one in found if one is not None]
    if not fitting:
        raise ways.nothing_fits(net, budget, least, seen, method)
    book.note("candidates", [json.loads(json.dumps(dataclasses.asdict(one))) for one in fitting])
    return fitting


def _rings(
    net: nn.Module, judge: Judge, budget: int, storage: Any, seen: Mapping[str, Any], folder: Path | None
) -> list[Candidate | None]:
    """Rings of windows for all convolutions, and for all but the most sensitive; these are found only with a folder."""
    try:
        whole = ways.windows(net, budget, storage, seen)
    except NothingToCondense as error:
        _log.info("no ring: %s", error)
        return []
    if whole is None or folder is None:
        return [whole]
    # Each place alone gets a ring as long, for its weights, as that of all places together.
    share = int(whole.options["size"]) / ways.replaced_by_windows(net)
    options = {**whole.options, "size": min(1.0, float(f"{share:.3g}")), "level": "net"}
    effects = sensitivity(net, whole.method, judge.examples(), **options)
    write_atomically(folder / "sensitivity.svg", effects.figure())
    write_atomically(folder / "sensitivity.txt", f"{effects}\n")
    order = [effect.name for effect in effects.worst_first()]
    kept = [order[:count] for count in _KEPT[1:] if count < len(order)]
    # What stays plain leaves less for codes: windows as long as those of all places together, or the next longer ones.
    lengths = [length for length in ways.LENGTHS if length >= whole.options["window"]][:2]
    return [whole, *(ways.windows(net, budget, storage, seen, keep, lengths) for keep in kept)]


def _best(judge: Judge, book: _Book, found: list[Candidate], seconds: float) -> tuple[nn.Module, Candidate]:
    """Chooses among the candidates: by their start, then by a short training; the best is trained for the rest of the time."""
    starts = {one.label: book.folder / "candidates" / str(n) / "start.safetensors" for n, one in enumerate(found)}
    scores: dict[str, dict[str, float]] = book.found("scores", {})

    def scored(kind: str, one: Candidate, net: nn.Module) -> None:
        scores.setdefault(one.label, {})[kind] = judge.score(net)
        book.note("scores", scores)
        _log.info("%s: %s %.4f, %s", one.label, judge.measure, scores[one.label][kind], kind)

    for one in found:
        path = starts[one.label]
        if "at the start" not in scores.get(one.label, {}):
            _log.info("%s: %s bytes, starting from the trained weights", one.label, f"{one.bytes:,}")
            make_folder(path.parent)
            small = judge.start(one)
            checkpoint.save(small, path)
            scored("at the start", one, small)
    if len(found) == 1 and found[0].method == PLAIN_METHOD and not found[0].pruned:
        return judge.start(found[0]), found[0]  # nothing was lost but bits
    fitted = sorted((one for one in found if not one.pruned), key=lambda one: -scores[one.label]["at the start"])
    left = [*fitted[:_TRIED], *(one for one in found if one.pruned)]  # zeros cost much at first, and are made up for
    each = _TRIAL * seconds / len(left)
    if len(left) > 1:
        for one in left:
            if "after a trial" not in scores[one.label]:
                _log.info("%s: training for %.0f s", one.label, each)
                small = judge.improve(one, starts[one.label], each, starts[one.label].parent / "trial")
                scored("after a trial", one, small)
        left.sort(key=lambda one: -scores[one.label]["after a trial"])
        seconds *= 1 - _TRIAL
    chosen = left[0]
    _log.info("%s is chosen; training for %.0f s", chosen.label, seconds)
    small = judge.improve(chosen, starts[chosen.label], seconds, starts[chosen.label].parent / "final")
    if "at the end" not in scores[chosen.label]:
        scored("at the end", chosen, small)
    known = scores[chosen.label]
    best = max(known, key=lambda kind: known[kind])
    if best == "at the start":
        small = checkpoint.load(starts[chosen.label], base=judge.plain)
    elif best == "after a trial":  # reads what the trial left
        small = judge.improve(chosen, starts[chosen.label], each, starts[chosen.label].parent / "trial")
    _log.info("%s: the net %s is kept", chosen.label, best)
    return small, chosen


def _written(
    net: nn.Module,
    small: nn.Module,
    chosen: Candidate,
    judge: Judge,
    book: _Book,
    seen: Mapping[str, Any],
    budget: int,
    size: ExampleSize | None,
) -> Shrunk:
    """Writes the files, and measures the net before and after on examples that chose nothing; ONNX if a size is given."""
    path = book.folder / MODEL
    if chosen.pruned:
        prune_(small, chosen.pruned)  # an optimizer may have moved zeros
    length = ways.write(small, path, chosen.storage, seen)
    for share in range(1, _MORE_ZEROS + 1):  # training may have made numbers less alike
        if length <= budget:
            break
        prune_(small, max(chosen.pruned, 0.0) + share / 100)
        length = ways.write(small, path, chosen.storage, seen)
    if length > budget:
        raise NothingFits(
            f"{path}: {chosen.label} takes {length:,} bytes, more than {budget:,}; allow so many, or name a method"
        )
    stored = checkpoint.load(path, base=judge.plain)
    exported = None if size is None else _exported(stored, book.folder / "model.onnx", seen, size)
    scores = book.found("scores", {})
    listed = [{**entry, **scores.get(entry["label"], {})} for entry in book.found("candidates")]
    result = Shrunk(
        path=path,
        onnx=None if exported is None else exported[0],
        page=book.folder / "report.html",
        label=chosen.label,
        candidates=tuple(listed),
        bytes_before=checkpoint.save(net, book.folder / "before.safetensors", notes=dict(seen)),
        bytes_after=length,
        onnx_bytes=None if exported is None else exported[1],
        before=judge.report(judge.plain),
        after=judge.report(stored),
        seconds=book.seconds,
    )
    (book.folder / "before.safetensors").unlink()
    book.note("result", json.loads(json.dumps(dataclasses.asdict(result), default=str)))
    write_page(result, checkpoint.ledger(path, stored).by_module(), judge.measure)
    return result


def _exported(net: nn.Module, path: Path, seen: Mapping[str, Any], size: ExampleSize) -> tuple[Path, int] | None:
    """Writes the net as ONNX; says why where that cannot be done."""
    from pocketcnn.errors import CannotExport, MissingExtra
    from pocketcnn.export import export

    try:
        found = export(net, path, format="onnx_compact", notes=seen, input_size=size, timed=False)
    except (CannotExport, MissingExtra, ValueError) as error:
        _log.warning("no ONNX file: %s", error)
        return None
    return found.path, found.size_bytes
