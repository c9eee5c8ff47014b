"""Pages that a person reads: one self-contained report.html from the plain files of a run."""

from lorakit.report.compare_page import write_compare_report
from lorakit.report.rank_page import write_rank_report
from lorakit.report.run_page import write_report
from lorakit.report.together_page import write_together_report

__all__ = ["write_compare_report", "write_rank_report", "write_report", "write_together_report"]
