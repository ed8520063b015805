#!/bin/sh
# Everything that needs a GPU, on a machine that has one: the suite, compute-sanitizer where it is, then the
# bench. At most eight minutes: the limits below sum to 7:30.
#
#   operators/kernels/tests/gpu/run.sh            here: builds, then runs
#   operators/kernels/tests/gpu/run.sh pack DIR   here, without a GPU: puts all that is needed into DIR
#   DIR/run.sh                                    there, with no Rust, compiler or network
#
# The folder has the default model's weights as halves, where HEADWATER_MODELS or the usual place has the
# model: with them less than 64 MiB. Reports go to $OUT (default: the folder itself). Exit code 0 only when
# every check passed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
most_mib=64

# The program that cargo built, of the JSON lines that it prints.
built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }

pack() {
    root=$(cd "$here/../.." && pwd)
    HEADWATER_CUDA=${HEADWATER_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/headwater/cuda}
    export HEADWATER_CUDA
    "$root/cuda/build.sh"
    rm -rf "$1/cubin"
    cp -R "$HEADWATER_CUDA/cubin" "$1/cubin"
    cd "$root"
    suite=$(cargo test --release -p headwater-kernels --test gpu --no-run \
        --message-format=json 2>"$1/build.log" | built)
    bench=$(cargo bench -p headwater-kernels --bench gpu --no-run \
        --message-format=json 2>>"$1/build.log" | built)
    if [ -z "$suite" ] || [ -z "$bench" ]; then
        cat "$1/build.log" >&2
        exit 1
    fi
    HEADWATER_PACK="$1" "$suite" --ignored --exact real::pack_real_weights
    cp "$suite" "$1/gpu"
    cp "$bench" "$1/bench_gpu"
    strip "$1/gpu" "$1/bench_gpu" 2>/dev/null || true
    cp "$here/run.sh" "$1/run.sh"
    mib=$(du -sm "$1" | cut -f1)
    echo "packed: $mib MiB in $1"
    if [ "$mib" -ge $most_mib ]; then
        echo "error: $1 has $mib MiB, at most $most_mib are wanted" >&2
        exit 1
    fi
}

# One tool of compute-sanitizer over the small tests.
sanitize() {
    timeout "$2" compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$folder/gpu" --test-threads 1 sanitized:: >"$out/$1.txt" 2>&1
    code=$?
    grep -E 'ERROR SUMMARY|^test result' "$out/$1.txt" || true
    if [ $code -ne 0 ]; then
        echo "FAILED: compute-sanitizer $1 ended with $code, see $out/$1.txt"
        result=1
    fi
}

run() {
    folder=$1
    out=${OUT:-$1}
    export HEADWATER_CUDA="$1" HEADWATER_TEST_DEVICE=required RUST_BACKTRACE=1
    result=0
    timeout 220 "$1/gpu" --test-threads 1 --nocapture >"$out/gpu.txt" 2>&1 || result=1
    grep -E '^test |panicked|relative error|test result|^SKIPPED|^products: |^real weights, ' "$out/gpu.txt" || true
    if command -v compute-sanitizer >/dev/null 2>&1; then
        set +e
        sanitize memcheck 30
        sanitize racecheck 40
        sanitize synccheck 30
        set -e
    else
        echo "SKIPPED: compute-sanitizer is not on PATH: memcheck, racecheck, synccheck"
    fi
    timeout 130 "$1/bench_gpu" --bench >"$out/bench.txt" 2>&1 || result=1
    cat "$out/bench.txt"
    return $result
}

if [ "${1:-}" = pack ]; then
    mkdir -p "$2"
    pack "$(cd "$2" && pwd)"
elif [ -x "$here/gpu" ]; then
    run "$here"
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    pack "$folder"
    run "$folder"
fi
