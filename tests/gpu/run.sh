#!/usr/bin/env bash
# Everything that is run on a GPU host before a release, on a machine without a package index:
#   tests/gpu/run.sh OUT [OLD_TREE]
# Installs this checkout by links, runs tests/gpu, compares packet to count with OLD_TREE in turns, and shows `watch`.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$1 old=${2:-}
site=$(mktemp -d)
mkdir -p "$site/peoplecounter" && ln -s "$PWD"/{common,services,deploy} "$site/peoplecounter/"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export FOOTAGE=${FOOTAGE:-$PWD/.gpu/footage} PLAN=${PLAN:-/tmp/gpu/plans/yolo26n_coco.trt86vc.sm90.fp16.plan}
run() { timeout "$1" python3 -m "${@:2}"; }

if [ -n "$old" ]; then
  run 240 tests.bench.compare "$old" --turns "${TURNS:-3}" --seconds "${SECONDS_EACH:-10}" --out "$out/compare.json" 2>&1 | tee "$out/compare.log"
fi
if [ -n "${TESTS:-}" ]; then
  run "${TESTS_S:-280}" pytest $TESTS -rs --durations=12 -p no:cacheprovider 2>&1 | tee "$out/tests.log"
else # what compiles kernels, on several cores; then what measures memory and recovery, alone
  kernels="tests/gpu/test_kernel.py tests/gpu/test_nvdec.py tests/gpu/test_turn.py"
  run 240 pytest $kernels -n 6 -rs -p no:cacheprovider 2>&1 | tee "$out/kernels.log"
  run "${TESTS_S:-300}" pytest tests/gpu $(printf -- '--ignore %s ' $kernels) -rs -p no:cacheprovider 2>&1 | tee "$out/tests.log"
fi

dir=/dev/shm/watched
timeout --foreground 60 python3 -m peoplecounter.deploy.cli run entrance="$FOOTAGE/towncentre_4k_mosaic_h264.mp4" --model "$PLAN" --workers infer_tiles=2 \
  --realtime --loop --json --run-dir "$dir" > /dev/null 2> "$out/run.log" &
sleep 16
COLUMNS=110 LINES=20 timeout -s INT 8 python3 -c 'import pty, sys; pty.spawn([sys.executable, "-m", *sys.argv[1:]])' \
  peoplecounter.deploy.cli watch --run-dir "$dir" > "$out/watch.txt" 2>&1
run 20 peoplecounter.deploy.cli ps --run-dir "$dir" > "$out/ps.txt" 2>&1
kill %1; wait
