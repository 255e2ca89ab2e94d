"""What in a model folder could run code, or is not what it says. Torch-free; nothing of the folder is run."""

from __future__ import annotations

from graftwork.audit.finding import Finding
from graftwork.audit.walk import Report, audit

__all__ = ["Finding", "Report", "audit"]
