#!/bin/sh
# onnxruntime fp32 and int8 and OpenVINO bf16 beside `cargo bench --bench embed_cpu`, which must have run before (it writes the
# texts and fetches the model). Installs what it needs into a virtual environment in the target
# folder, outside the test command. HEADWATER_BENCH_VENV uses another one.
#
#   taskset -c 1 benches/compare/embed_ort.sh
set -eu
target=${CARGO_TARGET_DIR:-target}
venv=${HEADWATER_BENCH_VENV:-$target/venv-ort}
models=${HEADWATER_MODELS:-${XDG_DATA_HOME:-$HOME/.local/share}/headwater/models}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch transformers onnx onnxruntime openvino tokenizers
fi
exec "$venv/bin/python" "$(dirname "$0")/embed_ort.py" \
    "$models/sentence-transformers--all-MiniLM-L6-v2" \
    "$target/embed_cpu_texts.json" "$target/minilm-fp32.onnx"
