"""Tables, figures and the report of sweeps, computed from their records only, without Ray and MLflow."""

from dmray.reporting.render import ReportPaths, write_report, write_results
from dmray.reporting.results import Comparison, Protocol, SeedGroup, SweepResults, TrialResult, collect
from dmray.reporting.terminal import render_results, render_summary

__all__ = [
    "Comparison",
    "Protocol",
    "ReportPaths",
    "SeedGroup",
    "SweepResults",
    "TrialResult",
    "collect",
    "render_results",
    "render_summary",
    "write_report",
    "write_results",
]
