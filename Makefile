# make demo | make test | make test-fast | make coverage | make lint | make docs; everything is installed into .venv first.
# STACK=official takes OpenMMLab's last releases in place of the onedl forks, in an environment of its own.
# PYTHON=/path/to/python makes the environment; otherwise the newest one that fits (.ci/find-python).
PYTHON ?=
STACK ?= onedl
VENV ?= $(if $(filter official,$(STACK)),.venv-official,.venv)
BIN := $(VENV)/bin
DIGITS ?= data/digits
DEMO_DIR ?= work_dirs/retinanet_scconv_r18_digits
TORCH := torch==2.11.0 torchvision==0.26.0
onedl := onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1 onedl-mmpretrain==1.3.6
official := mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0 mmpretrain==1.2.0 'numpy<2'
$(if $(filter onedl official,$(STACK)),,$(error STACK is onedl or official, not $(STACK)))

.PHONY: setup demo test test-fast coverage lint docs clean

setup: $(VENV)/ready

# torch first and without isolation: mmcv compiles its ops against it, or silently leaves them out.
$(VENV)/ready: setup.py Makefile
	[ -x $(BIN)/python ] || { python=$$(STACK=$(STACK) .ci/find-python "$(PYTHON)") && "$$python" -m venv $(VENV); }
	$(BIN)/pip install -q --upgrade pip 'setuptools>=77,<81' wheel ninja packaging
	@echo 'Installing torch (several GB) ...'
	$(BIN)/pip install -q $(TORCH)
	@echo 'Installing the OpenMMLab stack; compiling mmcv takes about 12 minutes on two cores ...'
	CFLAGS='-g0 -O2' MAX_JOBS=$${MAX_JOBS:-$$(nproc)} $(BIN)/pip install --no-build-isolation $($(STACK))
	$(BIN)/pip install -q --no-build-isolation -e '.[$(STACK),dev]'
	$(BIN)/python -c 'from mmscconv.checks.environment import check_environment; check_environment()'
	touch $@

$(DIGITS)/annotations/val.json: tools/make_digits.py | setup
	$(BIN)/python tools/make_digits.py --out $(DIGITS)

demo: setup $(DIGITS)/annotations/val.json
	@amp=$$($(BIN)/python -W ignore -c 'from mmscconv.optim import multiplies_bf16; print("--amp" * multiplies_bf16())') && \
	echo "mixed precision: $${amp:-not used, for this processor has no bf16 instructions}" && set -x && \
	$(BIN)/python tools/train.py configs/retinanet_scconv_r18_digits.py --data-root $(DIGITS) --work-dir $(DEMO_DIR) $$amp
	$(BIN)/python tools/test.py configs/retinanet_scconv_r18_digits.py "$$(cat "$(DEMO_DIR)/last_checkpoint")" \
		--data-root $(DIGITS) --work-dir $(DEMO_DIR) --show-dir drawn
	$(BIN)/python tools/plot.py curves $(DEMO_DIR) --out $(DEMO_DIR)/curves.png
	@echo "detections: $$(ls -d $(DEMO_DIR)/*/drawn | tail -n 1)"
	$(BIN)/python tools/report.py $(DEMO_DIR)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --cov

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow' tests/layers tests/ops

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo 'docs/_build/index.html'

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
