#!/bin/sh
# Compiles every kernel to an sm_90a cubin and checks what came out. Needs no GPU and no CUDA toolkit:
# the compiler comes from the Python index, once (500 MB, seconds), into a cache outside the checkout.
#
#   operators/kernels/cuda/build.sh
#
# Fails when a kernel spills registers or uses local memory, when ptxas serialises wgmma or ignores
# setmaxnreg, or when an instruction that a kernel stands for is not in its machine code. The cubins
# stay in $HEADWATER_CUDA/cubin (default: ~/.cache/headwater/cuda/cubin), where the program looks,
# beside a copy of the sources that they were made from: of other sources the program takes none.
#
# Exit codes: 0 all well; 1 a check failed; 3 the compiler could not be had (no Python, no index).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
home=${HEADWATER_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/headwater/cuda}
version=13.0
kit=$home/kit-$version
tree=$kit/nvidia/cu13

missing() {
    echo "skipped: CUDA kernels were not compiled: $1" >&2
    exit 3
}

# All of one toolkit but the two that only read: cubins of 13.0 are read by any of 13.
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37"

# Whether the kit is whole and of these very versions.
is_complete() {
    [ -f "$kit/complete" ] || return 1
    for wheel in $wheels; do
        name=$(echo "${wheel%%==*}" | tr - _)
        [ -d "$kit/$name-${wheel##*==}.dist-info" ] || return 1
    done
}

if ! is_complete; then
    command -v python3 >/dev/null 2>&1 || missing "python3 is not here, it installs the compiler"
    python3 -m pip --version >/dev/null 2>&1 || missing "python3 has no pip, it installs the compiler"
    echo "installing the CUDA $version compiler into $kit"
    rm -rf "$kit"
    mkdir -p "$kit"
    # shellcheck disable=SC2086 # A word each.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$kit" \
        $wheels >"$home/pip.log" 2>&1 ||
        missing "pip could not install it (no index? see $home/pip.log)"
    touch "$kit/complete"
fi
[ -x "$tree/bin/nvcc" ] || missing "$tree/bin/nvcc is not there; remove $kit and try again"
command -v c++ >/dev/null 2>&1 || missing "nvcc needs a C++ compiler (c++)"

work=$home/cubin.$$
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
failed=0
fail() {
    echo "error: $1" >&2
    failed=1
}

# Every module, two at a time at most.
for source in "$here"/*.cu; do
    name=$(basename "$source" .cu)
    "$tree/bin/nvcc" -std=c++17 -O3 -lineinfo -gencode arch=compute_90a,code=sm_90a -cubin \
        -Xptxas -v,-warn-spills,-warn-lmem-usage -o "$work/$name.cubin" "$source" >"$work/$name.log" 2>&1 &
    last=${current:-}
    current=$!
    [ -z "$last" ] || wait "$last" || true
done
wait
for source in "$here"/*.cu; do
    name=$(basename "$source" .cu)
    if [ ! -f "$work/$name.cubin" ]; then
        cat "$work/$name.log" >&2
        fail "$name.cu does not compile"
        continue
    fi
    if grep -Eiq 'warning|C7508|C7512|serializ' "$work/$name.log"; then
        grep -Ei 'warning|C7508|C7512|serializ' "$work/$name.log" >&2
        fail "$name.cu compiles with warnings"
    fi
    "$tree/bin/cuobjdump" --dump-sass "$work/$name.cubin" >"$work/$name.sass" 2>"$work/$name.err" ||
        { cat "$work/$name.err" >&2; fail "$name.cubin cannot be disassembled"; }
done
[ $failed = 0 ] || exit 1

# One line a kernel: registers, stack and spills by ptxas; threads, shared memory (both as its launcher
# beside src/cuda has them) and the blocks that a multiprocessor of 65,536 registers, 2,048 threads and
# 227 KB holds of it; and the counts of the instructions that matter.
awk '
function want(kernel,    shared_weights, follows) {
    shared_weights = kernel ~ /_by[24]$/ ? " MULTICAST" : ""
    # As Launch::can_follow has it.
    follows = kernel ~ /_naive$|^attention_heads|^whole_hopper/ ? "" : " ACQBULK"
    if (kernel ~ /^whole_hopper/) return "HGMMA HMMA LDSM LDGSTS"
    if (kernel ~ /int8_hopper/) return "IGMMA UTMALDG SYNCS USETMAXREG" shared_weights follows
    if (kernel ~ /_hopper_/) return "HGMMA UTMALDG SYNCS USETMAXREG" shared_weights follows
    if (kernel ~ /^linear_f16/ || kernel ~ /^attention_(f16|heads)/) return "HMMA LDSM LDGSTS" follows
    return follows
}
function threads(kernel) {
    if (kernel ~ /^whole_hopper/) return 256
    if (kernel ~ /_hopper/) return 384
    return kernel ~ /^attention_(f16|heads)/ ? 128 : 256
}
function shared(kernel) {
    if (kernel ~ /^feed_int8/) return 1024 + 230912 + 160
    if (kernel ~ /^feed_hopper/) return 1024 + 230400 + 96
    if (kernel ~ /^join_hopper/) return 1024 + 3 * 65536 + 8 * 16 * 144 + 48
    # Of the default model and of BGE-base.
    if (kernel == "whole_hopper_d32") return 1024 + 49152 + 24576 + 16 * 8192 + 3072 + 256 + 6 * 96
    if (kernel == "whole_hopper_d64") return 1024 + 98304 + 49152 + 8 * 8192 + 6144 + 256 + 12 * 96
    if (kernel ~ /^narrow_int8/) return 1024 + 4 * 32768 + 2 * 16384 + 64
    if (kernel ~ /^linear_int8_hopper_gelu/) return 1024 + 4 * 32768 + 2 * 32768 + 64
    if (kernel ~ /_hopper_/) return 1024 + 3 * 40960 + 2 * 49152 + 48
    if (kernel ~ /^linear_f16/) return 3 * 2 * 128 * 32 * 2
    if (kernel ~ /^attention_heads/) return 2 * 512 * 64 + 128 * 4
    if (kernel ~ /^attention_f16_d/) return 5 * 64 * substr(kernel, 16) * 2
    return kernel == "pool_f16" ? 1032 * 4 : 0
}
function least(a, b) { return a < b ? a : b }
function blocks(kernel,    regs, warps, most) {
    # Registers are given out by the warp, 256 at a time; a block takes 1 KB of shared memory besides.
    regs = int((registers[kernel] * 32 + 255) / 256) * 256
    warps = threads(kernel) / 32
    most = least(int(65536 / regs / warps), int(2048 / threads(kernel)))
    return least(least(most, int(233472 / (shared(kernel) + 1024))), 32)
}
/Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; order[++kernels] = kernel }
/bytes stack frame/ { stack[kernel] = $1; spill[kernel] = $5 + $9 }
/Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") registers[kernel] = $(i + 1) }
/Function :/ { kernel = $NF; is_code = 1 }
is_code {
    for (i = 1; i <= NF; i++) {
        split($i, word, ".")
        if (word[1] == "UTMALDG" && $i ~ /MULTICAST/) count[kernel, "MULTICAST"]++
        if ($i ~ /^MEMBAR.ALL.GPU/) count[kernel, "FENCE"]++
        if (word[1] ~ /^(HMMA|HGMMA|IGMMA|LDSM|LDGSTS|UTMALDG|UTMASTG|SYNCS|LDL|STL|USETMAXREG|STSM|ACQBULK)$/) count[kernel, word[1]]++
    }
}
END {
    printf "%-27s %4s %5s %5s %7s %7s %6s  %s\n", "kernel", "regs", "stack", "spill", "threads", "shared", "blocks", "instructions"
    for (k = 1; k <= kernels; k++) {
        kernel = order[k]; seen = ""
        n = split("HMMA HGMMA IGMMA LDSM STSM LDGSTS UTMALDG MULTICAST UTMASTG SYNCS USETMAXREG LDL STL", names, " ")
        for (i = 1; i <= n; i++) if (count[kernel, names[i]]) seen = seen names[i] " " count[kernel, names[i]] "  "
        printf "%-27s %4d %5d %5d %7d %7d %6d  %s\n", kernel, registers[kernel], stack[kernel], spill[kernel], threads(kernel), shared(kernel), blocks(kernel), seen
        if (stack[kernel] + spill[kernel] + count[kernel, "LDL"] + count[kernel, "STL"] > 0) {
            printf "error: %s uses local memory\n", kernel; bad = 1
        }
        # One where a cluster meets; in a loop each would wait for all stores of its thread.
        if (kernel ~ /_by[24]$/ && count[kernel, "FENCE"] > 1) {
            printf "error: %s has %d fences for the whole device, expected 1\n", kernel, count[kernel, "FENCE"]; bad = 1
        }
        n = split(want(kernel), names, " ")
        for (i = 1; i <= n; i++) if (!count[kernel, names[i]]) {
            printf "error: %s has no %s\n", kernel, names[i]; bad = 1
        }
    }
    if (!kernels) { print "error: no kernel was compiled"; bad = 1 }
    exit bad
}' "$work"/*.log "$work"/*.sass || exit 1

rm -f "$work"/*.log "$work"/*.sass "$work"/*.err
cp "$here"/*.cu "$here"/*.cuh "$work/"
rm -rf "$home/cubin"
mv "$work" "$home/cubin"
echo "cubins for compute capability 9.0: $home/cubin"
