"""What the latency of a bucket costs the loader, and what it costs zarr-python item by item.

    python -m benchmarks.bucket_latency [--delay 0.03] [--rounds 5] [--threads 2]

From the root of the repository, after `make setup-cloud`. SeaweedFS on loopback, behind two proxies in processes of
their own: one adds the delay to every request, the other none. 60 episodes of 100 steps, images uint8 (3, 96, 96) with
sensor noise, states float32 (7,); samples are random windows of two steps, batches of 64. The contestants take turns
over several rounds, each after a warm-up; medians of rounds, and ratios within a round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import obstore
import zarr
from tests.cloud import servers
from zarr.storage import ObjectStore

import salus
import salus.torch
from salus.storage import ObjectStorage

from .scenery import picture

EPISODES, STEPS, SIDE = 60, 100, 96
BATCH, BATCHES, WARM_UP = 64, 30, 12
ITEMS = 24  # of zarr-python, in a round
WINDOW = (-1, 0)


def record(path: Path) -> None:
    schema = salus.Schema({"images": salus.Image(height=SIDE, width=SIDE), "states": salus.Feature((7,))}, rate_hz=30)
    random = np.random.default_rng(0)
    scenes = [picture(random).transpose(2, 0, 1) for _ in range(4)]
    with salus.Recorder(salus.create(path, schema)) as recorder:
        for episode in range(EPISODES):
            scene, top = scenes[episode % len(scenes)], episode * 6
            images = np.stack([scene[:, top : top + SIDE, 5 * n : 5 * n + SIDE] for n in range(STEPS)])
            recorder.record_episode({"images": images, "states": random.normal(size=(STEPS, 7)).astype(np.float32)})


def upload(root: Path, server: servers.Server) -> str:
    url = f"{server.url}/data.zarr"
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "publish.lock"]
    ObjectStorage(url, server.options).put({path.relative_to(root).as_posix(): path.read_bytes() for path in files})
    return url


@contextmanager
def delayed(server: servers.Server, delay_s: float) -> Iterator[dict[str, Any]]:
    """`storage_options` of the server behind a proxy."""
    command = [sys.executable, "-m", "tests.cloud.proxy", server.options["endpoint"], str(delay_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield {**server.options, "endpoint": process.stdout.readline().strip()}
        process.communicate()


def loading(url: str, options: dict[str, Any], threads: int | None) -> Callable[[], float]:
    """Measures samples/s of the loader."""
    dataset = salus.open(url, storage_options=options)
    windows = salus.torch.WindowDataset(dataset, {"images": list(WINDOW), "states": list(WINDOW)})
    loader = salus.torch.Loader(windows, BATCH, shuffle=True, drop_last=True, threads=threads)
    warm_up = WARM_UP + (threads or 0)  # what lies ready from before is taken in it
    batches = (batch for _ in iter(int, 1) for batch in loader)

    def measure() -> float:
        for _ in range(warm_up):
            next(batches)
        began = time.perf_counter()
        for _ in range(BATCHES):
            assert next(batches)["images"].shape == (BATCH, 2, 3, SIDE, SIDE)
        return BATCH * BATCHES / (time.perf_counter() - began)

    return measure


def item_by_item(url: str, options: dict[str, Any]) -> Callable[[], float]:
    """Measures samples/s of zarr-python, one window after the other."""
    store = obstore.store.from_url(url, **options, client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(store, read_only=True), mode="r")
    images, states = group["images"], group["states"]
    random = np.random.default_rng(1)

    def measure() -> float:
        began = time.perf_counter()
        for episode, step in zip(random.integers(0, EPISODES, ITEMS), random.integers(1, STEPS, ITEMS), strict=True):
            assert images[episode, step - 1 : step + 1].shape == (2, 3, SIDE, SIDE)
            assert states[episode, step - 1 : step + 1].shape == (2, 7)
        return ITEMS / (time.perf_counter() - began)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.03, help="seconds that every request takes more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the loader; by default its own default")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record(folder / "data.zarr")
        (folder / "store").mkdir()
        server = stack.enter_context(servers.running("seaweedfs", folder / "store"))
        url = upload(folder / "data.zarr", server)
        near, far = (stack.enter_context(delayed(server, delay_s)) for delay_s in (0, arguments.delay))
        contestants = {
            "loader": loading(url, near, arguments.threads),
            "loader, delayed": loading(url, far, arguments.threads),
            "zarr-python, delayed": item_by_item(url, far),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(arguments.rounds + 1):
            for name, measure in contestants.items():
                rate = measure()
                if number:  # the first round fills the caches
                    rates[name].append(rate)
    print("| way | samples/s |\n|---|---:|")
    for name, some in rates.items():
        print(f"| {name} | {median(some):.1f} |")
    for other, demanded in (("loader", 0.8), ("zarr-python, delayed", 20)):
        ratio = median(a / b for a, b in zip(rates["loader, delayed"], rates[other], strict=True))
        print(f"loader, delayed, against {other}: {ratio:.2f} ×, demanded {demanded} ×")


if __name__ == "__main__":
    main()
