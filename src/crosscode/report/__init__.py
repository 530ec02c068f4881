"""What a run shows a person: a summary in the terminal, plots, and a page."""

from crosscode.report.figures import figures_of, pareto
from crosscode.report.page import write_report
from crosscode.report.saved import SavedRun, read_run
from crosscode.report.terminal import print_evaluation, print_exclusivity

__all__ = ["SavedRun", "figures_of", "pareto", "print_evaluation", "print_exclusivity", "read_run", "write_report"]
