#!/usr/bin/env bash
# The experiment of docs/results/smollm2.md: every arm that is not done yet and that there is time for.
#   bash docs/results/run-smollm2.sh MODEL DATA QUESTIONS [--seconds 530] [--text text|bridge|easy] [--only 'ARM;ARM'] [--rehearse]
# MODEL: a Hugging Face folder; DATA: made by `python -m qs.data prepare` with its tokenizer; QUESTIONS: the folder of the
# question sets. Results in $OUT (build/smollm2): smollm2.json after each arm, smollm2.log. Again: the arms that are missing.
set -u -o pipefail
export OUT=${OUT:-build/smollm2}; mkdir -p "$OUT"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
python3 docs/results/run_smollm2.py "$1" "$2" "$3" "$OUT" "${@:4}" 2>&1 | tee -a "$OUT/smollm2.log"
