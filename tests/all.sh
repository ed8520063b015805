#!/bin/sh
# Every test: formatting, lints, docs, licences (when cargo-deny is there), all suites; compiles the CUDA
# kernels where a compiler can be had (Python and a package index; no GPU). Installs
# what it needs: the toolchain of rust-toolchain.toml comes with rustup, the model by itself.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
for tool in c++ make git; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "error: $tool is needed (usearch, librdkafka, tests of git): apt install g++ make git, or Xcode's command line tools" >&2
        exit 1
    fi
done
# One run compiles everything once: incremental state would double what it writes.
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
# A full disk shows as whatever happened to be written last: say it before an hour is gone. In MB.
target="${CARGO_TARGET_DIR:-target}"
mkdir -p "$target"
built="$(du -sm "$target" | cut -f1)"
free="$(df -Pm "$target" | awk 'NR == 2 { print $4 }')"
need=$((10000 - built))
[ "$need" -gt 2000 ] || need=2000
if [ "$free" -lt "$need" ]; then
    echo "error: $target needs $need MB more and the disk has $free MB free: free some, or set CARGO_TARGET_DIR to a folder on another disk" >&2
    exit 1
fi
step() { echo; echo "== ${*#bounded }"; "$@"; }
# A test that hangs would say nothing for as long as anybody waits: its suites are stopped after a time that
# a busy machine never needs, and what they said is shown. In seconds; they take 500.
patience=2400
running=
bounded() {
    command -v timeout >/dev/null 2>&1 || { "$@"; return; }
    # Its own process group, servers and all; waited for, so that Ctrl-C reaches the trap.
    timeout -k 60 "$patience" "$@" &
    running=$!
    code=0
    wait "$running" || code=$?
    running=
    [ "$code" -ne 124 ] || echo "error: stopped after $patience s, a test hangs: $*" >&2
    return "$code"
}
trap '[ -z "$running" ] || kill "$running"; exit 130' INT TERM
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --quiet -- -D warnings
step cargo test --workspace --quiet --no-run
# Lanes share the cores: tests with real servers often wait for them, the law never does.
lanes="$(mktemp -d)"
lane() {
    name="$1"
    shift
    echo; echo "== ${*#bounded } (beside the others)"
    { code=0; "$@" >"$lanes/$name.log" 2>&1 || code=$?; echo "$code" >"$lanes/$name.code"; } &
}
# Waits for the lanes, which stop their servers when they end, and shows what they said.
lanes_end() {
    trap - EXIT
    wait
    failed=0
    for log in "$lanes"/*.log; do
        name="$(basename "$log" .log)"
        code="$(cat "$lanes/$name.code" 2>/dev/null || echo none)" # none: it was killed
        echo; echo "== lane $name: exit status $code"
        cat "$log"
        [ "$code" = 0 ] || failed=1
    done
    rm -rf "$lanes"
    return "$failed"
}
trap 'lanes_end || true' EXIT
lane systems bounded cargo test --workspace --quiet --no-fail-fast --test systems
# Kills wait often, too; three lanes are as many as two cores bear.
law_and_kills() {
    failures=0
    bounded cargo test --workspace --quiet --no-fail-fast --test law || failures=1
    bounded cargo test --workspace --quiet --no-fail-fast --test kill || failures=1
    return "$failures"
}
lane law law_and_kills
# cargo's patterns cannot exclude: the rest is what begins otherwise (tests/tidy.rs counts that every
# suite is here once). "fu": fuzz, see below.
step bounded cargo test --workspace --quiet --no-fail-fast --lib --bins --examples \
    --test '[!fkls]*' --test 'f[!u]*' --test 'l[!a]*' --test 'la[!w]*' --test 's[!y]*'
step bounded cargo test --workspace --quiet --doc
# Needs no GPU; 3: the compiler cannot be had here (no Python, no package index), said loudly.
if step operators/kernels/cuda/build.sh; then :; else
    code=$?
    [ "$code" -eq 3 ] || exit "$code"
fi
# NEON's kernels compile nowhere else; their scalar twin is tested above. Seconds: nothing is linked.
arm=aarch64-unknown-linux-gnu
if command -v rustup >/dev/null 2>&1 && { rustup target list --installed | grep -qx "$arm" ||
    timeout 60 rustup target add "$arm" >/dev/null 2>&1; }; then
    step cargo check --target "$arm" -p headwater-kernels --quiet
else
    echo "SKIPPED: NEON's kernels were not compiled (rustup target add $arm)"
fi
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --quiet
lanes_end
step tests/fuzz/run.sh 60
if command -v cargo-deny >/dev/null 2>&1; then
    step cargo deny check licenses sources
else
    echo "skipped: licences (cargo install cargo-deny)"
fi
echo; echo "all tests passed"
