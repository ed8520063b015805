"""Real weights of other families: out of an ONNX file into a model folder, and reference vectors beside it.

    real_models.py MODEL.onnx TOKENIZER.json cls|mean TEXTS.json FOLDER

Writes FOLDER/{config.json, tokenizer.json, model.safetensors, 1_Pooling/config.json, reference.json}: an exported
graph keeps the names of biases and norms; a product's weight is the constant beside its bias, transposed.
"""

import json
import os
import shutil
import sys

import numpy
import onnx
import onnxruntime
import tokenizers
from onnx import numpy_helper
from safetensors.numpy import save_file

graph_file, tokenizer_file, pooling, texts_file, folder = sys.argv[1:]
os.makedirs(os.path.join(folder, "1_Pooling"), exist_ok=True)
graph = onnx.load(graph_file).graph
constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
made_by = {output: node for node in graph.node for output in node.output}


def plain(name):
    for prefix in ("bert.", "model.", "0.auto_model."):
        name = name.removeprefix(prefix)
    return name


tensors = {plain(name): value for name, value in constants.items() if value.dtype == numpy.float32 and "::" not in name}
for node in graph.node:
    biases = [name for name in node.input if name in constants and name.endswith(".bias")]
    if node.op_type != "Add" or not biases:
        continue
    for name in node.input:
        product = made_by.get(name)
        if product is not None and product.op_type == "MatMul":
            weight = next(name for name in product.input if name in constants)
            tensors[plain(biases[0]).removesuffix("bias") + "weight"] = constants[weight].T
tensors = {name: numpy.ascontiguousarray(value) for name, value in tensors.items() if value.ndim in (1, 2)}
words = tensors["embeddings.word_embeddings.weight"]
layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
save_file(tensors, os.path.join(folder, "model.safetensors"))
config = {
    "model_type": "bert",
    "hidden_size": words.shape[1],
    "num_hidden_layers": layers,
    "num_attention_heads": 12,
    "intermediate_size": tensors["encoder.layer.0.intermediate.dense.bias"].shape[0],
    "max_position_embeddings": tensors["embeddings.position_embeddings.weight"].shape[0],
    "vocab_size": words.shape[0],
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
with open(os.path.join(folder, "config.json"), "w") as out:
    json.dump(config, out)
with open(os.path.join(folder, "1_Pooling", "config.json"), "w") as out:
    json.dump({f"pooling_mode_{'cls_token' if pooling == 'cls' else 'mean_tokens'}": True}, out)
shutil.copy(tokenizer_file, os.path.join(folder, "tokenizer.json"))

tokenizer = tokenizers.Tokenizer.from_file(tokenizer_file)
tokenizer.enable_truncation(512)
tokenizer.no_padding()
session = onnxruntime.InferenceSession(graph_file, providers=["CPUExecutionProvider"])
inputs = {one.name for one in session.get_inputs()}
with open(texts_file) as file:
    texts = json.load(file)
reference = []
for text in texts:
    ids = numpy.array([tokenizer.encode(text).ids], dtype=numpy.int64)
    feed = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
    states = session.run(None, {name: value for name, value in feed.items() if name in inputs})[0][0]
    vector = states[0] if pooling == "cls" else states.mean(axis=0)
    reference.append({"tokens": ids.shape[1], "vector": (vector / numpy.linalg.norm(vector)).tolist()})
with open(os.path.join(folder, "reference.json"), "w") as out:
    json.dump(reference, out)
print(f"{folder}: {layers} layers of {words.shape[1]}, {len(texts)} texts")
