"""What a run shows a person."""

from crosscode.report.figure import draw_run
from crosscode.report.terminal import print_exclusivity, print_summary

__all__ = ["draw_run", "print_exclusivity", "print_summary"]
