#!/usr/bin/env bash
# What only a GPU can show, in one call of at most nine minutes, from a checkout:
#   bash docs/results/run-gpu.sh [SECONDS] [--rehearse] [--only=JOB,..]    results in $OUT (build/gpu): gpu.json, gpu.log
# Fast paths against float64 on the CPU, the precision of logits, the whole 7B step of
# `train.py --data owm --thoughts 16` with random weights, phases, rates and peaks, and train.py itself.
set -u -o pipefail
seconds=${1:-530}
export OUT=${OUT:-build/gpu}; mkdir -p "$OUT"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
python3 docs/results/run_gpu.py "$seconds" "$OUT" "${@:2}" 2>&1 | tee "$OUT/gpu.log"
