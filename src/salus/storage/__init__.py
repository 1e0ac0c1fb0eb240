"""Bytes under keys. Durability lives here, and nowhere else."""

from .base import Found, Storage
from .local import LocalStorage, open_local

__all__ = ["Found", "LocalStorage", "Storage", "open_local"]
