#!/bin/sh
# Every test: formatting, lints, docs, licences (when cargo-deny is there), all suites. Installs
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
step() { echo; echo "== $*"; "$@"; }
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --quiet -- -D warnings
step cargo test --workspace --quiet
# Needs no GPU; 3: the compiler cannot be had here (no Python, no package index), said loudly.
if step operators/kernels/cuda/build.sh; then :; else
    code=$?
    [ "$code" -eq 3 ] || exit "$code"
fi
step tests/fuzz/run.sh 60
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --quiet
if command -v cargo-deny >/dev/null 2>&1; then
    step cargo deny check licenses sources
else
    echo "skipped: licences (cargo install cargo-deny)"
fi
echo; echo "all tests passed"
