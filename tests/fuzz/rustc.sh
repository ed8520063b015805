#!/bin/sh
# The compiler, with coverage counters for what is fuzzed and for nothing else: stable Rust has the
# pass, only its flag for a sanitizer is unstable. Cargo calls this as its RUSTC_WORKSPACE_WRAPPER,
# and keeps what it makes apart from the product's build.
rustc="$1"
shift
case " $* " in
    *" --crate-name connectors "* | *" --crate-name engine "* | *" --crate-name fuzz_targets "*)
        exec "$rustc" "$@" -Cpasses=sancov-module \
            -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
            -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
esac
exec "$rustc" "$@"
