#!/usr/bin/env bash
# The experiment of docs/results/smollm2.md, in one call of at most nine minutes on a GPU:
#   bash docs/results/run-smollm2.sh MODEL DATA QUESTIONS [SECONDS] [--rehearse]
# MODEL: a Hugging Face folder; DATA: made by `python -m qs.data prepare` with its tokenizer; QUESTIONS: the folder of the
# question sets. Results in $OUT (build/smollm2): smollm2.json after each piece, smollm2.log.
set -u -o pipefail
export OUT=${OUT:-build/smollm2}; mkdir -p "$OUT"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
python3 docs/results/run_smollm2.py "$1" "$2" "$3" "${4:-530}" "$OUT" "${@:5}" 2>&1 | tee "$OUT/smollm2.log"
