#!/bin/bash
# Training on two GPUs of one host under every launch file: results as JSON files in $1, a log beside each.
# The 633 M AR model on packed rows (benchmarks/training.py), 64 rows a step; the tokenizer, 32 clips a step, with its
# discriminator where that can be trained. One GPU with the same work per GPU comes first: what scaling is measured by.
# usage: benchmarks/two_gpus.sh OUTPUT [python]; some 25 minutes on two H200, most of them compilation.
set -u
out=$1 python=${2:-python}
mkdir -p "$out"
files=recipes/configs/accelerate
run() { # name, launch file, processes, script and its arguments
    local name=$1 file=$2 processes=$3
    shift 3
    echo "== $name"
    timeout 600 "$python" -m accelerate.commands.launch --config_file "$files/$file.yaml" --num_processes "$processes" \
        "$@" --output "$out/$name.json" >"$out/$name.log" 2>&1 || echo "failed: $(tail -n 3 "$out/$name.log")"
    tail -n 25 "$out/$name.log" | grep -E '^\||"(ms|clips|memory)' || true
}
run ar_single single 1 benchmarks/training.py --packed 32 --micro-batches 1
for file in ddp fsdp2 zero1 zero2 zero3; do
    run "ar_$file" "$file" 2 benchmarks/training.py --packed 32 --micro-batches 1 --no-check
done
run tokenizer_single single 1 benchmarks/tokenizer_training.py --batch 16
for file in ddp fsdp2; do
    run "tokenizer_$file" "$file" 2 benchmarks/tokenizer_training.py --batch 16
done
for file in zero1 zero2 zero3; do
    run "tokenizer_plain_$file" "$file" 2 benchmarks/tokenizer_training.py --batch 16 --plain
done
