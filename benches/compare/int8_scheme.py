"""How to round a model to bytes on a device: schemes side by side, in numpy, cosine with f32.

    pip install numpy tokenizers
    python benches/compare/int8_scheme.py MODEL_FOLDER [TEXTS_FILE] [COUNT]
    python benches/compare/int8_scheme.py MODEL_FOLDER --ranking

MODEL_FOLDER has MiniLM's shape (config.json is not read: 384 columns, 12 heads); TEXTS_FILE a text a line
(tests/data/ranking/manual.txt), every third with its first nine words as a second text, COUNT in all (240).
Six minutes on two cores. The table of docs/kernels.md was made by it.

With --ranking instead: the known items of operators/tests/ranking.rs (sentences taken out of the paragraphs of
tests/data/ranking/manual.txt; the rest of its paragraph is to be found), nDCG@10 and cosines in f32, by the scheme as built, and in FP8.

A scheme says for each product: how the input's columns are mixed (0, 128: groups of so many; 32: the columns
of a lane, see operators/kernels/cuda/bytes.cuh), and for how many columns of a row there is a scale (0: all).
Sums are exact here as there; attention and everything else is in f32.
"""

import json
import re
import struct
import sys

import numpy as np
from tokenizers import Tokenizer

HIDDEN, HEADS, GROUP = 384, 12, 128


def hadamard(size):
    matrix = np.array([[1.0]])
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def mixed(x, size):
    if size == 0:
        return x
    if size == GROUP:
        return (x.reshape(-1, GROUP) @ hadamard(GROUP)).reshape(x.shape)
    # Column n·8 + 2t + e of a group: mixed over n and e, t stays.
    lanes = x.reshape(-1, 16, 4, 2).transpose(0, 2, 1, 3).reshape(-1, 32) @ hadamard(32)
    return lanes.reshape(-1, 4, 16, 2).transpose(0, 2, 1, 3).reshape(x.shape)


def rounded(x, columns):
    parts = x.reshape(-1, columns or x.shape[1])
    scale = np.abs(parts).max(1, keepdims=True) / 127
    scale[scale == 0] = 1
    return (np.rint(parts / scale) * scale).reshape(x.shape)


def as_e4m3(x, columns):
    """FP8: four bits of exponent, three of mantissa behind the first, at most 448; a scale as for bytes."""
    parts = x.reshape(-1, columns or x.shape[1])
    scale = np.abs(parts).max(1, keepdims=True) / 448
    scale[scale == 0] = 1
    _, exponent = np.frexp(parts / scale)
    step = np.ldexp(1.0, np.maximum(exponent - 4, -9)).astype(np.float32)  # subnormal below 2^-6
    return (np.rint(parts / scale / step) * step * scale).reshape(x.shape)


def norm(x, gain, shift):
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * gain + shift


def gelu(x):
    return 0.5 * x * (1 + np.tanh(x * (0.8002 + 0.0347 * x * x)))


class Product:
    """y = x·Wᵀ + b; with a scheme (mixed how, columns of a scale, what rounds: bytes), else as it is."""

    def __init__(self, weight, bias, scheme):
        self.scheme, self.bias, self.weight = scheme, bias, weight
        if scheme is not None:
            self.round = scheme[2] if len(scheme) > 2 else rounded
            self.weight = self.round(mixed(weight, scheme[0]), 0)

    def __call__(self, x):
        if self.scheme is not None:
            x = self.round(mixed(x, self.scheme[0]), self.scheme[1])
        return x @ self.weight.T + self.bias


def tensors(folder):
    data = open(f"{folder}/model.safetensors", "rb").read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            count = int(np.prod(entry["shape"]))
            begin = 8 + length + entry["data_offsets"][0]
            out[name] = np.frombuffer(data, np.float32, count, begin).reshape(entry["shape"])
    return out


class Model:
    def __init__(self, weights, qkv=None, widen=None, narrow=None):
        self.weights = weights
        of = lambda name: (weights[name + ".weight"], weights[name + ".bias"])
        self.layers = []
        for i in range(6):
            at = f"encoder.layer.{i}."
            parts = [of(f"{at}attention.self.{part}") for part in ("query", "key", "value")]
            joined = [np.concatenate([part[j] for part in parts]) for j in (0, 1)]
            self.layers.append((
                Product(*joined, qkv),
                Product(*of(at + "attention.output.dense"), None),
                of(at + "attention.output.LayerNorm"),
                Product(*of(at + "intermediate.dense"), widen),
                Product(*of(at + "output.dense"), narrow),
                of(at + "output.LayerNorm"),
            ))

    def encode(self, texts):
        starts = np.cumsum([0] + [len(ids) for ids in texts])
        at, places = np.concatenate(texts), np.concatenate([np.arange(len(ids)) for ids in texts])
        table = lambda name: self.weights[f"embeddings.{name}.weight"]
        x = table("word_embeddings")[at] + table("position_embeddings")[places]
        x = x + table("token_type_embeddings")[0]
        x = norm(x, table("LayerNorm"), self.weights["embeddings.LayerNorm.bias"])
        for qkv, out, first, widen, narrow, second in self.layers:
            made, context = qkv(x), np.empty_like(x)
            for begin, end in zip(starts, starts[1:]):
                q, k, v = made[begin:end].reshape(-1, 3, HEADS, HIDDEN // HEADS).transpose(1, 2, 0, 3)
                scores = q @ k.transpose(0, 2, 1) / np.sqrt(HIDDEN // HEADS)
                scores = np.exp(scores - scores.max(2, keepdims=True))
                scores /= scores.sum(2, keepdims=True)
                context[begin:end] = (scores @ v).transpose(1, 0, 2).reshape(-1, HIDDEN)
            x = norm(x + out(context), *first)
            x = norm(x + narrow(gelu(widen(x))), *second)
        vectors = np.stack([x[begin:end].mean(0) for begin, end in zip(starts, starts[1:])])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


SCHEMES = {
    "not mixed, a scale a row": ((0, 0), (0, 0), (0, GROUP)),
    "not mixed, a scale for 128 columns": ((0, GROUP), (0, GROUP), (0, GROUP)),
    "mixed behind LayerNorm only": ((GROUP, 0), (GROUP, 0), (0, GROUP)),
    "mixed behind both, as built": ((GROUP, 0), (GROUP, 0), (32, GROUP)),
    "... a scale for 128 columns everywhere": ((GROUP, GROUP), (GROUP, GROUP), (32, GROUP)),
    "... 128 columns behind GELU too": ((GROUP, 0), (GROUP, 0), (GROUP, GROUP)),
    "FP8 (E4M3), not mixed": ((0, 0, as_e4m3), (0, 0, as_e4m3), (0, GROUP, as_e4m3)),
    "FP8 (E4M3), mixed as bytes are": ((GROUP, 0, as_e4m3), (GROUP, 0, as_e4m3), (32, GROUP, as_e4m3)),
}


def known_items(path):
    """Questions, items, and of each question its item: as operators/tests/ranking.rs has them."""
    questions, items, relevant = [], [], []
    for paragraph in open(path, encoding="utf-8").read().splitlines():
        parts = [part for end in re.split(r"(?<=\. )", paragraph) for part in re.split(r"(?<=; )", end)]
        asked = [part for part in parts if 6 <= len(part.split()) <= 40]
        if not asked:
            continue
        longest = max(len(part.encode()) for part in asked)
        kept = [part for part in asked if len(part.encode()) == longest][-1]  # the last of the longest, as max_by_key
        rest = paragraph
        for part in asked:
            if part != kept:
                rest = rest.replace(part, "", 1)
                questions.append(part.strip())
                relevant.append(len(items))
        items.append(rest)
    return questions, items, np.array(relevant)


def ranking(tokenizer, weights):
    questions, items, relevant = known_items("tests/data/ranking/manual.txt")
    print(f"{len(questions)} questions, {len(items)} items: nDCG@10", flush=True)
    ranked = {name: scheme for name, scheme in SCHEMES.items() if name.endswith("as built") or name.startswith("FP8")}
    exact = None
    for name, scheme in {"f32": (), **ranked}.items():
        model, vectors = Model(weights, *scheme), []
        texts = [tokenizer.encode(text).ids for text in questions + items]
        for begin in range(0, len(texts), 64):
            vectors.append(model.encode(texts[begin : begin + 64]))
        vectors = np.concatenate(vectors)
        exact = vectors if exact is None else exact
        cosines = (vectors * exact).sum(1)
        scores = vectors[: len(questions)] @ vectors[len(questions) :].T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        places = np.where(order == relevant[:, None], 1 / np.log2(np.arange(2, 12)), 0)
        found, mean, least = places.sum(1).mean(), cosines.mean(), cosines.min()
        print(f"{name:40} {found:.4f}  cosine mean {mean:.5f} least {least:.5f}", flush=True)


def main():
    folder = sys.argv[1]
    if sys.argv[2:] == ["--ranking"]:
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        tokenizer.no_padding()
        tokenizer.enable_truncation(256)
        return ranking(tokenizer, tensors(folder))
    path = sys.argv[2] if len(sys.argv) > 2 else "tests/data/ranking/manual.txt"
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 240
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    lines = [line for line in open(path, encoding="utf-8").read().split("\n") if len(line) > 20]
    texts = [text for line in lines[::3] for text in (line, " ".join(line.split()[:9]))][:count]
    texts = [tokenizer.encode(text).ids for text in texts]
    weights = tensors(folder)
    exact = Model(weights).encode(texts)
    for name, scheme in SCHEMES.items():
        cosines = (Model(weights, *scheme).encode(texts) * exact).sum(1)
        print(f"{name:40} mean {cosines.mean():.5f} least {cosines.min():.5f}", flush=True)


if __name__ == "__main__":
    main()
