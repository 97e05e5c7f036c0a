"""Tables as text, column by column."""

from pocketcnn.support.tables import columns, markdown_table


def test_columns_are_aligned_by_their_sides():
    cells = [("net", "bytes", "why"), ("ring", "1,000", ""), ("plain", "20", "large")]
    assert columns(cells, "lrl").splitlines() == ["net    bytes  why", "ring   1,000", "plain     20  large"]
    assert columns(cells[:2]).splitlines() == ["net   bytes  why", "ring  1,000"]


def test_a_table_in_markdown_keeps_its_cells_apart():
    assert markdown_table(("net", "|r|"), [("a|b", "0.5")], "lr").splitlines() == [
        "| net | /r/ |", "|---|---:|", "| a/b | 0.5 |",
    ]  # fmt: skip
    assert markdown_table(("a", "b"), [], "lr", gap=" ") == "| a | b |\n| --- | ---: |"
