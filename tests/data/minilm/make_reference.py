#!/usr/bin/env python3
"""Makes the reference that operators/tests/minilm.rs compares our encoder with.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install sentence-transformers
    /tmp/venv/bin/python tests/data/minilm/make_reference.py MODEL_FOLDER

MODEL_FOLDER holds all-MiniLM-L6-v2 as `headwater model pull` leaves it (or the wheel's `model/`).
Writes beside itself, from sentence-transformers in f32 on the CPU, one text at a time:
    texts.json    the texts
    ids.json      their token ids, special tokens included, cut at 256
    vectors.f32   little-endian f32, [texts, 384], unit length
"""

import hashlib
import json
import pathlib
import sys

import numpy
import torch
from sentence_transformers import SentenceTransformer

HERE = pathlib.Path(__file__).parent
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

TEXTS = [
    "",
    " ",
    "\n\t\r\n",
    "a",
    "Z",
    "7",
    ".",
    "é",
    "漢",
    "🙂",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "HOW DO I RESET MY SECOND FACTOR?",
    "how do i reset my second factor?",
    "enable the feature",
    "disable the feature",
    "2FA is not 3FA; version 1.2.3-rc.4 of 2026-11-21 at 03:31:40.123456Z",
    "1234567890 1,000,000.00 -3.5e-7 0xDEADBEEF 1/2 ½ ² ₃ Ⅷ",
    "naïve café, Ärger über Öl, ßtraße, ŁÓDŹ, Ångström, İstanbul, ǅ",
    "e\u0301 decomposed vs é composed; n\u0303 and ñ; a\u0328\u0301",
    "Ελληνικά: η γρήγορη αλεπού",
    "Быстрая коричневая лиса прыгает через ленивую собаку",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "한국어 문장입니다.",
    "日本語の文章です。カタカナも、ひらがなも。",
    "中文句子，没有空格。搜索引擎。",
    "mixed 中文 and English混排text",
    "emoji 👍🏽 👩‍👩‍👧‍👦 🇪🇺 🙂🙃 done",
    "control\u0000 nul\u0001 and \u007f del \u0085 nel",
    "zero\u200bwidth \u200djoiner \ufeffbom \u00adsoft-hyphen \u2028 line sep",
    "non\u00a0breaking\u202fspaces\u3000ideographic",
    "private \ue000 use, unassigned \u0378, replacement \ufffd",
    "𝒎𝒂𝒕𝒉 𝔣𝔯𝔞𝔨𝔱𝔲𝔯 ﬁ ligature ﷺ",
    "literal [CLS] and [SEP] and [PAD] [MASK] [UNK] tokens",
    "[SEP]",
    "[SEP][SEP][CLS]",
    "[ SEP ] [sep] [Sep]",
    "##ing ##ly un##able",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "y" * 5000,
    "fn main() { let v: Vec<u32> = (0..10).map(|x| x << 2).collect(); println!(\"{v:?}\"); }",
    "SELECT * FROM search(support, 'reset my second factor', k => 5) WHERE updated_at > now();",
    "https://example.com/path?q=a%20b&x=1#frag user@example.com /usr/local/bin",
    "snake_case_name camelCaseName kebab-case-name SCREAMING_SNAKE",
    "# Heading\n\n- item *one*\n- item **two**\n\n```rust\nfn f() {}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    "{\"key\": [1, 2, {\"nested\": null}], \"text\": \"quote \\\" inside\"}",
    "don't can't won't it's O'Neill's rock'n'roll “quoted” ‘single’ «guillemets» — dash – en … dots",
    "!!!??? ... ,,, ;;; ((([[[{{{ }}}]]])))",
    "$100 €200 £300 ¥400 ₹500 100% ±5° §4 ¶2 ©®™",
    "a\nb\nc\nd\ne",
    "word  with   many    spaces",
    " leading and trailing ",
    "Kafka offsets, PostgreSQL LSNs and git commits are positions in a log.",
    "A cached answer is a maintained view: it is retracted when a cited document changes.",
    "The logical timestamp covers vectors, keywords, attributes, permissions and cache.",
    "Only the chunks that an edit really changed are embedded again.",
    " ".join(f"token{i}" for i in range(100)),
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "word " * 256,
    "word " * 2000,
    "漢字" * 400,
    "The retrieval index is updated inside the dataflow, at a sealed time, without a pause. " * 40,
    "🙂 " * 300,
    "line of a log file 2026-11-21T03:31:40Z level=info msg=\"sealed\" tick=12345\n" * 30,
]


def main():
    folder = pathlib.Path(sys.argv[1])
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights == WEIGHTS, f"other weights: {weights}"
    torch.set_num_threads(1)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    ids, vectors = [], []
    for text in TEXTS:
        row = model.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        ids.append(row)
        # convert_to_numpy strips nothing; but encode() of some versions strips white space, which
        # changes no token of an uncased BERT.
        vectors.append(model.encode([text], normalize_embeddings=True, convert_to_numpy=True)[0])
    (HERE / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=True, separators=(",", ":")))
    (HERE / "ids.json").write_text(json.dumps(ids, separators=(",", ":")))
    numpy.asarray(vectors, dtype="<f4").tofile(HERE / "vectors.f32")
    print(len(TEXTS), "texts,", sum(map(len, ids)), "tokens")


if __name__ == "__main__":
    main()
