#!/bin/sh
# Everything that needs a GPU, on a machine that has one: the suite, then the bench. Eight minutes on one H200.
#
#   operators/kernels/tests/gpu/run.sh            here: builds, then runs
#   operators/kernels/tests/gpu/run.sh pack DIR   here, without a GPU: puts all that is needed into DIR
#   DIR/run.sh                                    there, with no Rust, compiler or network
#
# Reports go to $OUT (default: the folder itself). Exit code 0 only when every check passed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

pack() {
    mkdir -p "$1"
    root=$(cd "$here/../.." && pwd)
    HEADWATER_CUDA=${HEADWATER_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/headwater/cuda}
    export HEADWATER_CUDA
    "$root/cuda/build.sh"
    rm -rf "$1/cubin"
    cp -R "$HEADWATER_CUDA/cubin" "$1/cubin"
    cd "$root"
    built=$(cargo test --release -p headwater-kernels --test gpu --example bench_gpu --no-run \
        --message-format=json 2>"$1/build.log" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p') ||
        { cat "$1/build.log" >&2; exit 1; }
    cargo build --release -p headwater-kernels --example bench_gpu 2>>"$1/build.log"
    for program in $built; do
        case $program in
        */gpu-*) cp "$program" "$1/gpu" ;;
        esac
    done
    target=${CARGO_TARGET_DIR:-$root/../../target}
    cp "$target/release/examples/bench_gpu" "$1/bench_gpu"
    strip "$1/gpu" "$1/bench_gpu" 2>/dev/null || true
    cp "$here/run.sh" "$1/run.sh"
    echo "packed: $(du -sh "$1" | cut -f1) in $1"
}

run() {
    out=${OUT:-$1}
    export HEADWATER_CUDA="$1" HEADWATER_TEST_DEVICE=required RUST_BACKTRACE=1
    result=0
    timeout 400 "$1/gpu" --test-threads 1 --nocapture >"$out/gpu.txt" 2>&1 || result=1
    grep -E '^test |panicked|relative error|test result|^products: ' "$out/gpu.txt" || true
    timeout 180 "$1/bench_gpu" >"$out/bench.txt" 2>&1 || result=1
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
