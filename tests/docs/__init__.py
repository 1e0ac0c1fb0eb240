"""The documentation is tested: every code block runs, every public name is described."""
