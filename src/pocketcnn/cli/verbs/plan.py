"""`pocketcnn plan`: shows what `condense` would do to a net, and does nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from pocketcnn.cli.arguments import AnswerOptions, SurgeryArguments
from pocketcnn.cli.nets import input_size_of, open_net
from pocketcnn.cli.parsing import parse_surgery
from pocketcnn.cli.printing import answer


def plan(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class PlanOnly(AnswerOptions, SurgeryArguments):
        pass

    given, options = parse_surgery(PlanOnly, words, "plan")
    import pocketcnn as pc

    opened = open_net(given.model, given)
    found = pc.plan(opened.net, given.method, input_size=input_size_of(given, opened), **options)
    answer(
        str(found), found.rows, method=found.method, options=found.options, shared_numbers=found.shared_numbers,
        before=found.before, after=found.after,
    )  # fmt: skip
