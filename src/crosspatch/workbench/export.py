"""Findings as entries of one page."""

from crosspatch.report.collection import Entry
from crosspatch.workbench.findings import Finding, says, title_of


def entry_of(finding: Finding) -> Entry:
    """Make an entry of a finding."""
    return Entry(title_of(finding.result), says(finding.result), finding.note, finding.result.effects)
