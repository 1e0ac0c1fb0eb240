"""Bytes under keys. Durability lives here, and nowhere else."""

from .base import Found, Storage, StoredFile
from .beneath import open_plain
from .local import LocalStorage, open_local

__all__ = ["Found", "LocalStorage", "Storage", "StoredFile", "open_local", "open_plain"]
