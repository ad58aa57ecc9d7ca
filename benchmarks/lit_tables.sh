#!/bin/bash
# The tables, times and pictures of docs/lit.md on two GPUs: the codec by DDP, then a causal inpainter on one GPU and one
# that looks ahead on the other, then what they give. Logs and tables in OUTPUT; done stages are not repeated.
# usage: benchmarks/lit_tables.sh VIDEOS MANIFEST DAVIS OUTPUT [python]
# MANIFEST names the splits of VIDEOS: train, val, and show for clips that may be shown; DAVIS holds a folder of pictures
# for each video. CODEC_STEPS and LIT_STEPS shorten the training.
set -eu
videos=$(realpath "$1") manifest=$(realpath "$2") davis=$(realpath "$3") out=$(realpath -m "$4") python=${5:-python}
root=$(realpath "$(dirname "$0")/..")
configs=$root/recipes/configs/lit
mkdir -p "$out"
cd "$out" # recipes write to runs/ below here
data=(--data.source.path "$videos" --data.source.manifest "$manifest")
training=("${data[@]}" --data.source.split train --train.compile true)

stage() { # name, GPUs, command ...
    local name=$1 gpus=$2
    shift 2
    [ -e "$name.done" ] && return
    echo "$(date +%T) $name"
    CUDA_VISIBLE_DEVICES=$gpus "$@" >"$name.txt" 2>"$name.log" || {
        echo "$name failed: $(tail -n 3 "$name.log")"
        return 1
    }
    touch "$name.done"
    echo "$(date +%T) $name done"
}
evaluate() { # name, GPU, config and its options
    local name=$1 gpu=$2
    shift 2
    stage "$name" "$gpu" "$python" "$root/recipes/compare_lit.py" "$@" --output_dir "runs/$name"
}
quick='["LIT", "means copied", "copy-forward", "interpolation", "LIT, one price", "copy-forward, one price", "InfoTok'"'"'s rule"]'

stage codec 0,1 "$python" -m accelerate.commands.launch --config_file "$root/recipes/configs/accelerate/ddp.yaml" \
    --num_processes 2 "$root/recipes/train.py" "$configs/autoencoder.yaml" "${training[@]}" \
    ${CODEC_STEPS:+--train.steps "$CODEC_STEPS"}

inpainter() { # name, GPU, options
    local name=$1 gpu=$2
    shift 2
    stage "$name" "$gpu" "$python" "$root/recipes/train.py" "$configs/inpainter.yaml" "${training[@]}" \
        --output_dir "runs/lit/$name" ${LIT_STEPS:+--train.steps "$LIT_STEPS"} "$@"
}
inpainter lit 0 &
causal=$!
inpainter ahead 1 --model.inpainter.causal false
wait $causal

times() { stage "$1" 0 "$python" "$root/benchmarks/lit.py" runs/lit/lit/export --size 256 "${@:2}"; }
davis=(--data.source "{type: davis, path: $davis}")
val=("$configs/keep_rates.yaml" "${data[@]}" --data.source.split val)
ahead=(--model runs/lit/ahead/export --methods '["LIT", "LIT, one price"]')
(
    evaluate davis 0 "$configs/davis/keep_rates.yaml" "${davis[@]}" --methods "$quick"
    times times --clips 16
    times times_compiled --clips 64 --compile
    evaluate davis_elastic 0 "$configs/davis/keep_rates.yaml" "${davis[@]}" --methods "[\"ElasticTok's rule\"]"
) &
(
    evaluate val 1 "${val[@]}" --methods "$quick"
    evaluate show 1 "$configs/keep_rates.yaml" "${data[@]}" --data.source.split show --rates '[0.2]' --shown 3 \
        --methods '["LIT", "copy-forward", "interpolation"]'
    evaluate val_ahead 1 "${val[@]}" "${ahead[@]}"
    evaluate davis_ahead 1 "$configs/davis/keep_rates.yaml" "${davis[@]}" "${ahead[@]}"
    evaluate val_elastic 1 "${val[@]}" --methods "[\"ElasticTok's rule\"]"
) &
wait
