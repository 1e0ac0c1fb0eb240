"""The names that the original SALUS system used, over the modules of today."""
