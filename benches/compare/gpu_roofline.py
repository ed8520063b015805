#!/usr/bin/env python3
"""Predicts the CUDA kernels' speed by counting: what each asks of each part of an H200, and which part is asked most.

    python3 benches/compare/gpu_roofline.py [--tokens 8192] [--length 256]

Nothing is measured here: it is the arithmetic behind docs/kernels.md, to be held against `cargo bench --bench gpu` on
a device. A kernel's time is the largest of

    tensor   operations of its busiest multiprocessor at the rate that a large product was measured at
    shared   bytes that wgmma and ldmatrix read and that come in or leave, at 128 a clock
    issue    instructions of its busiest quarter of a multiprocessor, one a clock (counted in the machine code)
    mufu     exponentials and tangents, 16 a clock
    L2       bytes between L2 and the multiprocessors
    HBM      bytes of activations, were none of them still in L2

plus START for what nothing hides: the launch inside a graph, the first operands, the last tile's epilogue.
"""

import argparse
import math

MULTIPROCESSORS, CLOCK = 132, 1.755e9
MATRIX = 790e12 / MULTIPROCESSORS / CLOCK  # operations a clock of halves, measured for 8192³; bytes twice
SHARED, MUFU = 128, 16
HBM = 4.3e12  # a copy measured on an H200
START = 2.0e-6
KB = 1024


class Kernel:
    """What one tile of a persistent block costs, in clocks, and what all tiles move, in bytes."""

    l2 = 5.5e12

    def __init__(self, name, tiles, tensor=0, shared=0, issue=0, mufu=0, l2=0, hbm=0, at_once=1):
        rounds = math.ceil(tiles / (MULTIPROCESSORS * at_once)) * at_once
        # With several blocks a multiprocessor the last round is spread over them: as good as even.
        rounds = rounds if at_once == 1 else tiles / MULTIPROCESSORS
        clocks = {"tensor": tensor, "shared": shared / SHARED, "issue": issue, "mufu": mufu / MUFU}
        self.name, self.operations = name, tensor * MATRIX * tiles
        self.bounds = {part: rounds * count / CLOCK for part, count in clocks.items()}
        self.bounds["L2"] = tiles * l2 / Kernel.l2
        self.bounds["HBM"] = hbm / HBM
        self.bound = max(self.bounds, key=self.bounds.get)
        self.seconds = self.bounds[self.bound] + START


def product(name, tokens, inputs, outputs, epilogue, cluster, element=2, width=192, out=2):
    """linear_hopper.cu, linear_int8_hopper.cu: 128×width by a warpgroup, the other one's epilogue beside it."""
    steps, tiles = math.ceil(inputs * element / 128), math.ceil(tokens / 128) * math.ceil(outputs / width)
    fill, read = (128 + width) * 128, 4 * 2 * (64 * 32 + width * 32)
    done = 128 * width * out
    return Kernel(
        name,
        tiles,
        tensor=steps * 128 * width * 128 / element * 2 / (MATRIX * 2 / element),
        shared=steps * (fill + read) + 2 * done,
        issue=epilogue + 60 * steps,
        mufu=128 * width if "GELU" in name else 0,
        l2=steps * (128 + width / cluster) * 128 + done,
        hbm=tokens * (inputs * element + outputs * out),
    )


def narrow_int8(tokens, inputs, outputs, cluster):
    """narrow_int8_hopper.cu: 64×128 by each warpgroup, sums scaled every 128 of K."""
    steps, tiles = inputs // 128, math.ceil(tokens / 128) * math.ceil(outputs / 128)
    return Kernel(
        "FFN2, bytes",
        tiles,
        tensor=steps * 128 * 128 * 128 * 2 / (2 * MATRIX),
        shared=steps * (32 * KB + 2 * 4 * (64 * 32 + 128 * 32)) + 2 * 32 * KB,
        issue=2 * (500 + 200 * steps),
        l2=steps * (16 * KB + 16 * KB / cluster) + 32 * KB,
        hbm=tokens * (inputs + 2 * outputs),
    )


def join(tokens, inputs, cluster):
    """join_hopper.cu: 128 rows of 384, both warpgroups."""
    steps, tiles = math.ceil(inputs / 64), math.ceil(tokens / 128)
    fill = 64 * KB
    return Kernel(
        "product + norm",
        tiles,
        tensor=steps * 128 * 384 * 64 * 2 / MATRIX,
        shared=steps * (fill + 4 * 2 * (2 * KB + 12 * KB)) + 2 * 96 * KB,
        issue=2 * (2400 + 60 * steps),
        l2=steps * (16 * KB + 48 * KB / cluster) + 2 * 96 * KB,
        hbm=tokens * (inputs + 2 * 384) * 2,
    )


def feed(tokens, wide, cluster):
    """feed_hopper.cu: 64 rows of 384, chunks of 128 of the inner width."""
    chunks, tiles = math.ceil(wide / 128), math.ceil(tokens / 64)
    first, second = 24 * (2 * KB + 4 * KB), 2 * 8 * (2 * KB + 6 * KB)
    return Kernel(
        "feed-forward half",
        tiles,
        tensor=chunks * 2 * 64 * 384 * 128 * 2 / MATRIX,
        shared=chunks * (first + second + 192 * KB + 16 * KB) + 4 * 48 * KB,
        issue=chunks * (64 * 13 + 300) + 2 * 1900,
        mufu=chunks * 64 * 128,
        l2=chunks * 192 * KB / cluster + 2 * 48 * KB,
        hbm=tokens * 2 * 384 * 2,
    )


def attention(tokens, length, heads, width):
    """attention.cu: 64 queries and all keys of a text, 64 at a time."""
    steps = math.ceil(length / 64)
    tiles = math.ceil(tokens / length) * steps * heads
    piece = 64 * width * 2
    return Kernel(
        "attention",
        tiles,
        tensor=steps * 4 * 64 * 64 * width / (0.62 * MATRIX),  # mma.sync, as published for Hopper
        shared=steps * (2 * piece + 4 * 2 * piece) + 2 * piece,
        issue=steps * (420 if width == 32 else 520) + 350,
        mufu=steps * 64 * 64,
        l2=2 * steps * piece + 2 * piece,
        hbm=tokens * heads * width * 2 * 4,
        at_once=4,
    )


def attention_heads(tokens, length, heads):
    """attention_heads.cu: all keys of a text and head at once, 16 queries a warp; heads of 32."""
    walks = math.ceil(length / 16)
    share = length / 256
    return Kernel(
        "attention by heads",
        math.ceil(tokens / length) * heads,
        tensor=walks * 4 * 16 * length * 32 / (0.62 * MATRIX),
        shared=2 * length * 64 + walks * 2 * length * 64,
        issue=walks / 4 * 970 * share,
        mufu=walks * 16 * length,
        l2=4 * length * 64,
        hbm=tokens * heads * 32 * 2 * 4,
        at_once=3,
    )


def feed_int8(tokens, wide, cluster):
    """feed_int8_hopper.cu: as feed, in bytes; the counts of a chunk are docs/kernels.md's."""
    chunks, tiles = math.ceil(wide / 128), math.ceil(tokens / 64)
    return Kernel(
        "feed-forward half, bytes",
        tiles,
        tensor=chunks * 2 * 64 * 384 * 128 * 2 / (2 * MATRIX),
        shared=chunks * 1920 * SHARED + 4 * 48 * KB,
        issue=chunks * 2080 + 2 * 1900,
        l2=chunks * 96 * KB / cluster + (2 * 48 + 24) * KB,
        hbm=tokens * (2 * 384 * 2 + 384),
    )


def norm(tokens, hidden, name="norm", rows=3):
    """norm.cu: memory, a warp a row."""
    return Kernel(name, math.ceil(tokens / 8), issue=2 * 400, l2=8 * rows * hidden * 2, hbm=tokens * rows * hidden * 2, at_once=4)


def layer(recipe, tokens, length, hidden, heads):
    kind, cluster = recipe
    wide, is_int8, is_fused = 4 * hidden, "int8" in kind, "fused" in kind
    element = 1 if is_int8 else 2
    out = [product("QKV", tokens, hidden, 3 * hidden, 1600 if is_int8 else 1300, cluster, element)]
    by_heads = "by heads" in kind
    out.append(attention_heads(tokens, length, heads) if by_heads else attention(tokens, length, heads, hidden // heads))
    if is_fused:
        out.append(join(tokens, hidden, cluster))
    else:
        out += [product("O", tokens, hidden, hidden, 1300, cluster), norm(tokens, hidden)]
    if "fused feed" in kind:
        return out + [(feed_int8 if is_int8 else feed)(tokens, wide, cluster)]
    if is_int8:
        out.append(product("FFN1 + GELU", tokens, hidden, wide, 3250, cluster, 1, 128, 1))
        return out + [narrow_int8(tokens, wide, hidden, cluster), norm(tokens, hidden)]
    out.append(product("FFN1 + GELU", tokens, hidden, wide, 2700, cluster))
    if is_fused:
        return out + [join(tokens, wide, cluster)]
    return out + [product("FFN2", tokens, wide, hidden, 1300, cluster), norm(tokens, hidden)]


MODELS = {"MiniLM-L6": (384, 12, 6), "BGE-base": (768, 12, 12)}
KINDS = ["stage 2", "fused", "fused feed", "fused feed, by heads", "int8", "int8, fused feed", "int8, fused feed, by heads"]
RECIPES = [(kind, cluster) for kind in KINDS for cluster in [1, 2, 4]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--kernels", action="store_true", help="every kernel of every recipe")
    parser.add_argument("--l2", type=float, default=5.5, help="TB/s; published for an H100. Its products of 128×128 without "
                        "clusters reach 610 TFLOP/s, which asks for 9.5: neighbours that want the same are served at once")
    args = parser.parse_args()
    Kernel.l2 = args.l2 * 1e12
    for model, (hidden, heads, layers) in MODELS.items():
        print(f"\n{model}, {args.tokens} tokens in texts of {args.length}\n")
        print("| recipe | M tokens/s | of the matrix rate | what bounds the time, % |\n|---|---|---|---|")
        for recipe in RECIPES:
            if hidden != 384 and ("fused" in recipe[0] or "by heads" in recipe[0]):
                continue
            kernels = layer(recipe, args.tokens, args.length, hidden, heads)
            ends = [norm(args.tokens, hidden, "embed", 4), norm(args.tokens, hidden, "pool", 1)]
            seconds = layers * sum(kernel.seconds for kernel in kernels) + sum(kernel.seconds for kernel in ends)
            flops = args.tokens * layers * (24 * hidden**2 + 4 * args.length * hidden)
            parts = {"start": START * (len(kernels) * layers + 2)}
            for kernel in kernels:
                parts[kernel.bound] = parts.get(kernel.bound, 0) + layers * (kernel.seconds - START)
            shares = ", ".join(f"{part} {100 * t / seconds:.0f}" for part, t in sorted(parts.items(), key=lambda p: -p[1]))
            print(f"| {recipe[0]}, clusters of {recipe[1]} | {args.tokens / seconds / 1e6:.1f} | {100 * flops / seconds / 790e12:.0f} % | {shares} |")
            if args.kernels:
                for kernel in kernels:
                    bounds = ", ".join(f"{part} {1e6 * t:.1f}" for part, t in kernel.bounds.items() if t)
                    print(f"| · {kernel.name} | {1e6 * kernel.seconds:.1f} µs | | {bounds} |")


if __name__ == "__main__":
    main()
