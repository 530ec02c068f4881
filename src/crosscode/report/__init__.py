"""What a run shows a person."""

from crosscode.report.terminal import print_summary

__all__ = ["print_summary"]
