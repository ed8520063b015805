#!/usr/bin/env python3
"""torch with cuBLAS on the same shapes as operators/kernels/benches/gpu.rs, the peer of the CUDA kernels.

    pip install torch numpy            # a build for the machine's CUDA
    python3 benches/compare/gpu_torch.py

BERT encoders of MiniLM-L6's and BGE-base's shapes in fp16, random weights, batches of 16,384 tokens of equal
length, no padding. Products by cuBLAS (torch.nn.functional.linear), attention by torch's own fused kernel
(scaled_dot_product_attention), LayerNorm and GELU as torch has them; eager, and replayed as a CUDA graph.
Median of 20 rounds of 8 batches by CUDA events; clocks, power and temperature by nvidia-smi. Run it in the
same session as the bench. Roofline share: as there, over HEADWATER_PEAK_TFLOPS (790).
"""

import os
import statistics
import subprocess
import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("torch is not here: pip install torch numpy")

SHAPES = {"MiniLM-L6's shape": (384, 6), "BGE-base's shape": (768, 12)}
LENGTHS = (128, 256, 512)
TOKENS, HEADS, VOCABULARY = 16_384, 12, 30_522
ROUNDS, BATCHES = 20, 8
PEAK = float(os.environ.get("HEADWATER_PEAK_TFLOPS", "790")) * 1e12


def state(when):
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        found = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        found = f"nvidia-smi: {error}"
    print(f"{when}: {found}")


class Encoder:
    """Post-LayerNorm BERT, mean pooling, length 1: what the kernels compute."""

    def __init__(self, hidden, layers):
        def matrix(outputs, inputs):
            return torch.randn(outputs, inputs, device="cuda", dtype=torch.half) / inputs**0.5

        def vector(size, value=0.0):
            return torch.full((size,), value, device="cuda", dtype=torch.half)

        def dense(outputs, inputs):
            return matrix(outputs, inputs), vector(outputs)

        def norm():
            return vector(hidden, 1.0), vector(hidden)

        self.hidden = hidden
        self.words = matrix(VOCABULARY, hidden)
        self.positions = matrix(512, hidden)
        self.segment = vector(hidden)
        self.first = norm()
        self.layers = [
            (
                dense(3 * hidden, hidden),
                dense(hidden, hidden),
                norm(),
                dense(4 * hidden, hidden),
                dense(hidden, 4 * hidden),
                norm(),
            )
            for _ in range(layers)
        ]

    def __call__(self, ids):
        texts, length = ids.shape
        hidden = self.hidden
        x = F.embedding(ids, self.words) + self.positions[:length] + self.segment
        x = F.layer_norm(x, (hidden,), *self.first, 1e-12)
        for qkv, out, norm1, widen, narrow, norm2 in self.layers:
            heads = F.linear(x, *qkv).view(texts, length, 3, HEADS, hidden // HEADS)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            context = F.scaled_dot_product_attention(q, k, v)
            context = context.transpose(1, 2).reshape(texts, length, hidden)
            x = F.layer_norm(x + F.linear(context, *out), (hidden,), *norm1, 1e-12)
            wide = F.gelu(F.linear(x, *widen))
            x = F.layer_norm(x + F.linear(wide, *narrow), (hidden,), *norm2, 1e-12)
        return F.normalize(x.float().mean(1), dim=1)


def median_ms(run):
    """Milliseconds of one batch."""
    for _ in range(3 * BATCHES):
        run()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(BATCHES):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / BATCHES)
    return statistics.median(times)


def graph_of(model, ids):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(ids)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(ids)
    return graph


def main():
    if not torch.cuda.is_available():
        sys.exit("nothing was measured: torch sees no CUDA device")
    torch.manual_seed(20_261_121)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    state("before")
    with torch.inference_mode():
        for name, (hidden, layers) in SHAPES.items():
            model = Encoder(hidden, layers)
            print(f"\n{name}: batches of {TOKENS} tokens")
            print(f"{'length':>8} {'how':>8} {'ms':>9} {'M tokens/s':>11} {'of peak':>8}")
            for length in LENGTHS:
                ids = torch.randint(VOCABULARY, (TOKENS // length, length), device="cuda")
                graph = graph_of(model, ids)
                for how, run in (("eager", lambda: model(ids)), ("graph", graph.replay)):
                    seconds = median_ms(run) / 1e3
                    operations = layers * TOKENS * (24 * hidden**2 + 4 * hidden * length)
                    share = operations / seconds / PEAK
                    print(
                        f"{length:>8} {how:>8} {seconds * 1e3:>9.3f} {TOKENS / seconds / 1e6:>11.2f}"
                        f" {share:>7.1%}"
                    )
                state("under load, a moment ago")


if __name__ == "__main__":
    main()
