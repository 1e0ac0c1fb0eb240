"""Whatever SALUS recorded, any Zarr v3 reader reads bit for bit, with no SALUS anywhere near.

Each reader is a script that runs in a process of its own, with warnings as errors; see `conftest.py` and `readers/`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import HERE, Peer, run

PEERS = (
    Peer("zarr-python", "readers/read_zarr.py", needs=("zarr",), crc_error="checksum do not match"),
    Peer("zarrs", "readers/read_zarrs.py", needs=("zarr", "zarrs"), crc_error="checksum"),
    Peer("tensorstore", "readers/read_tensorstore.py", needs=("tensorstore",), crc_error="Digest mismatch"),
    Peer("xarray", "readers/read_xarray.py", needs=("zarr", "xarray"), crc_error="checksum do not match"),
    Peer("zarrita", "zarrita/read.mjs"),  # zarrita 0.7 cuts checksums off and never looks at them
)

each_peer = pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])


@each_peer
def test_the_preset_reads_bit_exact(peer: Peer, preset: Path) -> None:
    done = peer.read(preset)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50_000_000  # the images alone are more


@each_peer
def test_a_schema_of_ones_own_reads_bit_exact(peer: Peer, scene: Path) -> None:
    done = peer.read(scene)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 250_000


@each_peer
def test_streams_on_clocks_of_their_own_read_bit_exact(peer: Peer, streams: Path) -> None:
    done = peer.read(streams)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 2_500


# --- the readers themselves: each would notice ------------------------------------------------------------------


@pytest.fixture
def copy(scene: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scene, tmp_path / "copy"))


@each_peer
def test_every_reader_notices_one_bit_that_differs(peer: Peer, copy: Path) -> None:
    start = json.loads((copy / "expected.json").read_text(encoding="utf-8"))["arrays"]["observation.state"]["rows"]["3"]
    _flip(copy / "values.bin", start + 8, bit=0)  # the last bit of the mantissa
    done = peer.read(copy)
    assert done.returncode != 0
    assert "observation.state[3" in done.stderr
    assert "differs from what was recorded" in done.stderr


@each_peer
def test_every_reader_notices_a_byte_that_changed_in_a_shard(peer: Peer, copy: Path) -> None:
    _flip(copy / "data.zarr" / "observation.images.front" / "c.4.1.0.0.0", 700, bit=3)
    done = peer.read(copy)
    assert done.returncode != 0
    assert (peer.crc_error or "observation.images.front[4") in done.stderr


@each_peer
def test_every_reader_notices_a_shard_that_is_missing(peer: Peer, copy: Path) -> None:
    (copy / "data.zarr" / "depth" / "c.4.2.0.0").unlink()
    done = peer.read(copy)
    assert done.returncode != 0
    assert "depth[4" in done.stderr


def test_a_reader_that_is_not_installed_skips_its_tests_here_and_fails_them_in_ci(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer("absent", "readers/read_absent.py", needs=("a_package_that_nobody_has",))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="a_package_that_nobody_has is not installed; run `make setup`"):
        peer.command()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="a_package_that_nobody_has is not installed"):
        peer.command()


def test_no_reader_can_import_salus() -> None:
    done = run([sys.executable, "-c", "import common, salus"], cwd=HERE / "readers")
    assert "ImportError: a plain reader does without salus" in done.stderr


def test_the_lock_file_of_the_node_reader_pins_zarrita_and_names_no_host() -> None:
    lock = json.loads((HERE / "zarrita" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert lock["node_modules/zarrita"]["version"] == "0.7.5"
    for name, package in lock.items():
        assert "resolved" not in package, name
        assert name == "" or package["integrity"].startswith("sha512-")


def _flip(path: Path, offset: int, *, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
