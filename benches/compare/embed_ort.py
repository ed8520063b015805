#!/usr/bin/env python3
"""onnxruntime fp32 and int8, and OpenVINO bf16, on one thread over the texts of benches/embed_cpu.rs.

    embed_ort.py MODEL_FOLDER TEXTS.json MODEL.onnx

Exports the model with torch when MODEL.onnx is missing, and quantizes it (dynamic, a scale for each
output channel) to MODEL.int8.onnx. One text a call, no padding: the best case for a peer without
batching, and the same work as ours. Tokenizing is timed apart (`tokenizers`). Prints, for each peer,
tokens a second with and without tokenizing, milliseconds a text and milliseconds for one question of
12 tokens: text to vector, as benches/embed_cpu.rs asks it, and of its ids alone. Writes the texts' ids to TEXTS.ids.json: `cargo bench -p headwater-kernels --bench encoder`
runs our kernels over them (HEADWATER_BENCH_IDS). OpenVINO is left out where it is not installed.
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


def onnxruntime_runner(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda row: session.run(None, {"ids": row})[0]


def openvino_runner(path):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    request = model.create_infer_request()
    return lambda row: request.infer({"ids": row})[0]


def quantize(onnx, quantized):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(onnx, quantized, per_channel=True, weight_type=QuantType.QInt8)


QUESTION = "how do i reset the second factor of my account"


def asked(run):
    """Sorted milliseconds of 600 runs."""
    times = []
    for _ in range(600):
        at = time.perf_counter()
        run()
        times.append((time.perf_counter() - at) * 1e3)
    return sorted(times)


def measure(name, run, ids, tokenizing, tokenize):
    """Prints the table of one peer."""
    tokens = sum(row.shape[1] for row in ids)
    for row in ids[: len(ids) // 10 + 1]:
        run(row)
    times = []
    started = time.perf_counter()
    for row in ids:
        at = time.perf_counter()
        run(row)
        times.append((time.perf_counter() - at) * 1e3)
    seconds = time.perf_counter() - started
    question = tokenize(QUESTION)
    assert question.shape == (1, 12), question
    whole = asked(lambda: run(tokenize(QUESTION)))
    forward = asked(lambda: run(question))
    times.sort()
    print(f"peer             {name}, 1 thread")
    print(f"tokens/s/core    {tokens / (seconds + tokenizing):.0f} (forward only {tokens / seconds:.0f})")
    print(f"ms a text        p50 {times[len(times) // 2]:.2f}  p99 {times[int(len(times) * 0.99)]:.2f}")
    print(f"ms a question    p50 {whole[300]:.3f}  p99 {whole[594]:.3f} (12 tokens, text to vector)")
    print(f"ms a question    p50 {forward[300]:.3f}  p99 {forward[594]:.3f} (12 tokens, forward only)", flush=True)


def main():
    folder, texts_path, onnx = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    texts = json.loads(texts_path.read_text())
    if not onnx.exists():
        export(folder, onnx)
    quantized = onnx.with_suffix(".int8.onnx")
    if not quantized.exists():
        quantize(onnx, quantized)
    import numpy
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    started = time.perf_counter()

    def tokenize(text):
        return numpy.asarray([tokenizer.encode(text).ids], dtype=numpy.int64)

    ids = [tokenize(text) for text in texts]
    tokenizing = time.perf_counter() - started
    tokens = sum(row.shape[1] for row in ids)
    texts_path.with_suffix(".ids.json").write_text(json.dumps([row[0].tolist() for row in ids]))
    print(f"texts            {len(texts)}")
    print(f"tokens           {tokens} (mean {tokens / len(texts):.0f} a text)")
    version = onnxruntime.__version__
    measure(f"onnxruntime {version} fp32", onnxruntime_runner(onnx), ids, tokenizing, tokenize)
    measure(f"onnxruntime {version} int8", onnxruntime_runner(quantized), ids, tokenizing, tokenize)
    try:
        run = openvino_runner(onnx)
    except ImportError:
        print("openvino is not installed: left out")
    else:
        import openvino

        measure(f"OpenVINO {openvino.__version__.split('-')[0]} bf16", run, ids, tokenizing, tokenize)
    print(f"resident         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB (peak)")


if __name__ == "__main__":
    main()
