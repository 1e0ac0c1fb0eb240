"""Verifying: finds every byte of a dataset that is not what was committed (docs/spec.md, section 3.10)."""

from .report import Finding, Kind, Severity, VerifyReport
from .run import verify

__all__ = ["Finding", "Kind", "Severity", "VerifyReport", "verify"]
