"""The same episodes through SALUS and through what people use today: `salus bench`."""
