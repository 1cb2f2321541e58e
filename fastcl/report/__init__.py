"""The report of a run: one HTML file with all its pictures inside."""

from fastcl.report.report import Evidence, Generation, replace_frontier, write_report

__all__ = ["Evidence", "Generation", "replace_frontier", "write_report"]
