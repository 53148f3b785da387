"""A plugin of pytest's: what failed is told when it fails; under emulation the end of the run may be minutes away."""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        sys.stdout.write(f"\n{report.nodeid} failed:\n{report.longreprtext}\n")
