"""Tables, figures and one self-contained page from the records of runs."""

from pocketcnn.report.page import write_report
from pocketcnn.report.tables import COLUMNS, Summary, markdown, summarize
from pocketcnn.support.runs import read_curve, read_results, read_speeds

__all__ = ["COLUMNS", "Summary", "markdown", "read_curve", "read_results", "read_speeds", "summarize", "write_report"]
