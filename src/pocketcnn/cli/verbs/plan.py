"""`pocketcnn plan`: shows what `condense` would do to a net, and does nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from pocketcnn.cli.arguments import SurgeryArguments, input_size_of
from pocketcnn.cli.nets import named_or_file
from pocketcnn.cli.parsing import parse_surgery


def plan(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class PlanOnly(SurgeryArguments):
        pass

    import pocketcnn as pc
    from pocketcnn.checkpoint.notes import ImageNotes

    given, options = parse_surgery(PlanOnly, words, "plan")
    net, notes = named_or_file(given.model, given)
    print(pc.plan(
        net, given.method, input_size=input_size_of(given, ImageNotes.from_notes(notes)), include=given.include, exclude=given.exclude, **options
    ))  # fmt: skip
