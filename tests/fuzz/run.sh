#!/bin/sh
# Fuzzes the decoders: tests/fuzz/run.sh [seconds [target …]]
#
# Runs the kept corpus of each target once, then fuzzes for so many seconds (60) over all targets
# together. What breaks a law is kept, named, and makes this fail. `merge` for seconds: adds what
# was found since to the corpus, as few and as small inputs as reach the same code.
set -eu
cd "$(dirname "$0")"
seconds="${1:-60}"
[ $# -eq 0 ] || shift
targets="${*:-json avro envelope pgoutput text}"

CARGO_TARGET_DIR="$(mkdir -p "${CARGO_TARGET_DIR:-../../target}" && cd "${CARGO_TARGET_DIR:-../../target}" && pwd)"
export CARGO_TARGET_DIR
echo "building the fuzz targets"
# As `cargo test --workspace` builds it, so that of the packages of others nothing is built again.
fuzz="$(RUSTC_WORKSPACE_WRAPPER="$PWD/rustc.sh" cargo test --workspace --test fuzz --no-run --quiet --message-format=json-render-diagnostics |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
[ -x "$fuzz" ] || { echo "error: the fuzz targets were not built (see above)" >&2; exit 1; }
work="$CARGO_TARGET_DIR/fuzz"
found="$work/found"
failed="$work/failed"
mkdir -p "$found" "$failed"

cores="$(getconf _NPROCESSORS_ONLN)"
count="$(echo "$targets" | wc -w)"
[ "$cores" -le "$count" ] || cores="$count"

# The whole of one target: $1, for $2 seconds. Prints one line, or what broke.
one() {
    target="$1"
    mkdir -p "$found/$target" "corpus/$target"
    log="$work/$target.log"
    HEADWATER_FUZZ="$target"
    export HEADWATER_FUZZ
    set -- "$2" -dict=words.txt -max_len=4096 -timeout=30 -rss_limit_mb=2048 -detect_leaks=0 \
        "-artifact_prefix=$failed/$target-"
    time="$1"
    shift
    if [ "$time" = merge ]; then
        rm -rf "$found/merged"
        mkdir "$found/merged"
        "$fuzz" -set_cover_merge=1 -use_counters=0 "$@" "$found/merged" "corpus/$target" "$found/$target" >"$log" 2>&1
        rm -r "corpus/$target"
        mv "$found/merged" "corpus/$target"
        echo "$target: $(find "corpus/$target" -type f | wc -l) inputs"
        return
    fi
    if "$fuzz" "$@" "-max_total_time=$time" -print_final_stats=1 "$found/$target" "corpus/$target" >"$log" 2>&1; then
        runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
        echo "$target: $runs inputs in $time s, $(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -1)"
    else
        tail -n 40 "$log"
        input="$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)"
        echo "error: the fuzz target $target broke a law (see above); the input: ${input:-none}" >&2
        echo "again: HEADWATER_FUZZ=$target $fuzz $input" >&2
        echo "when it is mended: cp $input tests/fuzz/corpus/$target/" >&2
        return 1
    fi
}

if [ "$seconds" = merge ]; then
    for target in $targets; do one "$target" merge; done
    exit
fi
# As many at once as there are cores.
each=$((seconds * cores / count))
[ "$each" -gt 0 ] || each=1
status=0
running=0
pids=
for target in $targets; do
    one "$target" "$each" &
    pids="$pids $!"
    running=$((running + 1))
    if [ "$running" -eq "$cores" ]; then
        for pid in $pids; do wait "$pid" || status=1; done
        running=0
        pids=
    fi
done
for pid in $pids; do wait "$pid" || status=1; done
exit "$status"
