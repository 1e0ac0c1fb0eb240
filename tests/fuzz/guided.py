"""Fuzzing one target, guided by the coverage of `salus`: finds the inputs that reach what chance does not.

    pip install 'salus[fuzz]'; python -m tests.fuzz.guided record -runs=1000000 [-seed=1] [any option of libFuzzer]

The inputs are changed by the same mutators as in `tests.fuzz.run`. What fails is put into torture.tmp/fuzzing/.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["salus"]):
    import salus.cli.terminal
    import salus.recorder.recovery
    import salus.verification.shards
    import salus.zarr_codecs  # noqa: F401

from .examples import make_examples
from .execution import GUARD, execute, limit_memory
from .targets import all_targets

_FOUND = Path(__file__).parents[2] / "torture.tmp" / "fuzzing"


def main() -> None:
    """Fuzz the target that the command line names; libFuzzer takes the rest of it."""
    name, options = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="salus-fuzz-") as folder:
        target = all_targets(make_examples(Path(folder)), Path(folder))[name]
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)

        def run(data: bytes) -> None:
            _, _, failure = execute(target, data)
            if failure is not None:
                _FOUND.mkdir(parents=True, exist_ok=True)
                (_FOUND / failure.file_name).write_bytes(data)
                raise RuntimeError(f"{failure.why}\n{failure.trace}{_FOUND / failure.file_name}")

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            return target.mutate(data, random.Random(seed))[:max_size]  # noqa: S311 - a choice that can be made again

        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")
        atheris.Setup([sys.argv[0], "-max_len=1048576", *options, str(corpus)], run, custom_mutator=mutate)
        limit_memory()
        with GUARD.watching(Path(folder)):
            atheris.Fuzz()


if __name__ == "__main__":
    main()
