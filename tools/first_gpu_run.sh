#!/usr/bin/env bash
# The first run on a machine with a GPU, in the order of docs/gpu.md; leaves a folder, and an archive of it to send back.
#
#     tools/first_gpu_run.sh [FOLDER]     default: first-gpu-run
#
# With the environment active. Each step writes what it says to FOLDER/<step>.txt; the first one that fails ends the
# script, and the same command goes on where it stopped, as `acs` does. LVLM names another model to try first.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
out=${1:-first-gpu-run}
lvlm=${LVLM:-Qwen2.5-VL-7B}
mkdir -p "$out"
trap 'tar -czf "$out.tar.gz" "$out" && echo "== send back $out.tar.gz"' EXIT

step() { # step NAME COMMAND...
    local name=$1
    shift
    echo "== $name: $*"
    if ! "$@" 2>&1 | tee "$out/$name.txt"; then
        echo "== $name failed: docs/gpu.md says what to do" >&2
        exit 1
    fi
}

keep() { # keep PROFILE: its report, without notebooks and figures
    mkdir -p "$out/$1"
    cp -r "reports/$1/tables" "reports/$1/manifest.json" "reports/$1/index.html" "$out/$1/"
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || true
fi
acs doctor 2>&1 | tee "$out/doctor.txt" || true # what lacks is told; the steps that need it will fail
step probe acs probe --lvlm "$lvlm"
step laptop-data acs data coco --profile laptop
step laptop acs run --profile laptop
keep laptop
step paper-plan acs run --profile paper --limit 20 --dry-run
step paper-data-coco acs data coco --limit 20
step paper-data-objects365 acs data objects365 --limit 20
step paper acs run --profile paper --limit 20
keep paper-first-20
step engine python -m benchmarks.gpu --minutes 8
cp reports/benchmarks/gpu.csv "$out/"
