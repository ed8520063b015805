#!/usr/bin/env python3
"""onnxruntime fp32 on one thread over the texts of benches/embed_cpu.rs.

    embed_ort.py MODEL_FOLDER TEXTS.json MODEL.onnx

Exports the model with torch when MODEL.onnx is missing. One text a call, no padding: the best case
for a peer without batching, and the same work as ours. Tokenizing is timed apart (`tokenizers`).
Prints tokens a second with and without tokenizing, and milliseconds a text.
"""

import json
import os
import pathlib
import resource
import sys
import time


def export(folder, onnx):
    import torch
    from transformers import BertModel

    # Eager attention exports to the plain graph that onnxruntime's optimiser knows how to fuse.
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()

    class Embed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            states = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            return torch.nn.functional.normalize(states.mean(dim=1), dim=1)

    torch.onnx.export(
        Embed(),
        (torch.ones(1, 16, dtype=torch.int64),),
        str(onnx),
        input_names=["ids"],
        output_names=["vector"],
        dynamic_axes={"ids": {0: "batch", 1: "tokens"}},
        opset_version=17,
        dynamo=False,
    )


def main():
    folder, texts, onnx = sys.argv[1], json.load(open(sys.argv[2])), pathlib.Path(sys.argv[3])
    if not onnx.exists():
        export(folder, onnx)
    import numpy
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    started = time.perf_counter()
    ids = [numpy.asarray([tokenizer.encode(text).ids], dtype=numpy.int64) for text in texts]
    tokenizing = time.perf_counter() - started
    tokens = sum(row.shape[1] for row in ids)
    for row in ids[: len(ids) // 10 + 1]:
        session.run(None, {"ids": row})
    times = []
    started = time.perf_counter()
    for row in ids:
        at = time.perf_counter()
        session.run(None, {"ids": row})
        times.append((time.perf_counter() - at) * 1e3)
    seconds = time.perf_counter() - started
    times.sort()
    print(f"onnxruntime      {onnxruntime.__version__} fp32, 1 thread")
    print(f"texts            {len(texts)}")
    print(f"tokens           {tokens} (mean {tokens / len(texts):.0f} a text)")
    print(f"tokens/s/core    {tokens / (seconds + tokenizing):.0f} (forward only {tokens / seconds:.0f})")
    print(f"ms a text        p50 {times[len(times) // 2]:.2f}  p99 {times[int(len(times) * 0.99)]:.2f}")
    print(f"resident         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB (peak)")


if __name__ == "__main__":
    main()
