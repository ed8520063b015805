//! Tokenizers to test with: the default model's, and small ones with every option.

use std::path::PathBuf;

use kernels::tokenizer::WordPiece;
use serde_json::{Value, json};
use tokenizers::models::wordpiece::WordPiece as TheirWordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::oracle::Both;

/// The folder of the default model, if models were fetched on this machine.
fn folder() -> Option<PathBuf> {
    let at = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let models = match (at("HEADWATER_MODELS"), at("XDG_DATA_HOME"), at("HOME")) {
        (Some(models), ..) => PathBuf::from(models),
        (_, Some(data), _) => PathBuf::from(data).join("headwater/models"),
        (_, _, Some(home)) => PathBuf::from(home).join(".local/share/headwater/models"),
        _ => return None,
    };
    Some(models.join("sentence-transformers--all-MiniLM-L6-v2"))
}

/// The default model's tokenizer.
pub fn real() -> Option<Both> {
    let json = std::fs::read(folder()?.join("tokenizer.json")).ok()?;
    Some(Both::new("all-MiniLM-L6-v2", &json))
}

/// The same from its list of tokens.
fn real_list() -> Option<Both> {
    let lines = std::fs::read_to_string(folder()?.join("vocab.txt")).ok()?;
    Some(list("vocab.txt", &lines, true))
}

/// A tokenizer from a list of tokens, as `BertWordPieceTokenizer` of `tokenizers` makes one.
fn list(name: &str, lines: &str, lowercase: bool) -> Both {
    let vocab = TheirWordPiece::read_bytes(lines.as_bytes()).expect("a list");
    let id = |token: &str| (token.to_owned(), vocab[token]);
    let (sep, cls) = (id("[SEP]"), id("[CLS]"));
    let names = ["[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]"];
    let known = names.iter().filter(|&&name| vocab.contains_key(name));
    let added: Vec<AddedToken> = known.map(|&name| AddedToken::from(name, true)).collect();
    let model = TheirWordPiece::builder().vocab(vocab.clone()).build();
    let mut theirs = Tokenizer::new(model.expect("a model"));
    theirs.add_special_tokens(added).expect("special tokens");
    let normalizer = BertNormalizer::new(true, true, None, lowercase);
    theirs
        .with_normalizer(Some(normalizer))
        .expect("a normalizer");
    theirs.with_pre_tokenizer(Some(BertPreTokenizer));
    theirs.with_post_processor(Some(BertProcessing::new(sep, cls)));
    let ours = WordPiece::from_vocab(lines, lowercase).expect(name);
    Both::of(name, ours, theirs)
}

/// Tokens of a small vocabulary: not every character is in it.
fn tokens(prefix: &str) -> Vec<String> {
    let mut tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(str::to_owned)
        .into();
    let begin = "abcdefghijklmnopqrsxyz0123456789ABCXYZ.,!?-'\"()[]#$é漢字かñ\u{1112}\u{3b9}\u{3c3}я«\u{2014}\u{301}\u{302e}";
    tokens.extend(begin.chars().map(String::from));
    tokens.extend(
        "abcdeinorstuvwyz013ABéя\u{1161}\u{11ab}\u{301}\u{307}\u{3c2}\u{302e}"
            .chars()
            .map(|c| format!("{prefix}{c}")),
    );
    for word in [
        "un",
        "able",
        "the",
        "they",
        "day",
        "say",
        "nai",
        "naive",
        "to",
        "aaaa",
        "unk",
        "i\u{307}",
        "яя",
        "a\u{302e}",
    ] {
        tokens.push(word.to_owned());
        tokens.push(format!("{prefix}{word}"));
    }
    let mut seen = std::collections::HashSet::new();
    tokens.retain(|token| seen.insert(token.clone()));
    tokens
}

fn added(id: usize, content: &str, flags: [bool; 5]) -> Value {
    let [single_word, lstrip, rstrip, normalized, special] = flags;
    json!({"id": id, "content": content, "single_word": single_word, "lstrip": lstrip,
        "rstrip": rstrip, "normalized": normalized, "special": special})
}

/// A small `tokenizer.json` with `BertNormalizer`'s options in their order.
pub fn small(options: [bool; 4], prefix: &str) -> Value {
    let [clean_text, handle_chinese_chars, strip_accents, lowercase] = options;
    let vocab: serde_json::Map<String, Value> = tokens(prefix)
        .into_iter()
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .iter()
        .enumerate();
    let special: Vec<Value> = special
        .map(|(id, name)| added(id, name, [false, false, false, false, true]))
        .collect();
    let one = |name: &str, type_id| json!({"SpecialToken": {"id": name, "type_id": type_id}});
    let text = |id: &str, type_id| json!({"Sequence": {"id": id, "type_id": type_id}});
    let token = |name: &str, id| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": clean_text,
            "handle_chinese_chars": handle_chinese_chars, "strip_accents": strip_accents, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [one("[CLS]", 0), text("A", 0), one("[SEP]", 0)],
            "pair": [one("[CLS]", 0), text("A", 0), one("[SEP]", 0), text("B", 1), one("[SEP]", 1)],
            "special_tokens": {"[CLS]": token("[CLS]", 2), "[SEP]": token("[SEP]", 3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": prefix,
            "max_input_chars_per_word": 100, "vocab": vocab}
    })
}

fn both(name: &str, file: &Value) -> Both {
    Both::new(name, file.to_string().as_bytes())
}

/// Added tokens with every flag, some of them words, some not in the vocabulary.
fn with_added() -> Value {
    let mut file = small([true; 4], "##");
    let tokens = tokens("##");
    let list = file["added_tokens"].as_array_mut().expect("a list");
    // single_word, lstrip, rstrip, normalized, special
    let words = [
        ("<a>", [false, true, false, false, true]),
        ("<a> <b>", [false, false, true, false, false]),
        ("\u{e9}t\u{e9}", [true, true, true, false, false]),
        ("day", [true, false, false, true, false]),
        ("New York", [false, true, true, true, false]),
        ("\u{6f22}", [false, false, false, true, false]),
        (" b", [false; 5]),
    ];
    let mut free = tokens.len()..;
    for (word, flags) in words {
        let known = tokens.iter().position(|token| token == word);
        let id = known.or_else(|| free.next()).expect("endless");
        list.push(added(id, word, flags));
    }
    file
}

/// Tokenizers that differ in what they do to characters.
pub fn some() -> Vec<Both> {
    let lower = small([true; 4], "##");
    let cased = small([true, true, false, false], "##");
    let first = real().unwrap_or_else(|| both("small", &lower));
    vec![
        first,
        both("cased", &cased),
        both("nothing", &small([false; 4], "##")),
        both(
            "accents and ideographs",
            &small([false, true, true, false], "##"),
        ),
        both("dirty and lower", &small([false, false, false, true], "##")),
    ]
}

/// All tokenizers; the first is the default model's where there is one.
pub fn all() -> Vec<Both> {
    let lower = small([true; 4], "##");
    let mut few = lower.clone();
    few["model"]["max_input_chars_per_word"] = json!(5);
    let mut old = lower.clone();
    old["model"]
        .as_object_mut()
        .expect("an object")
        .remove("type");
    old["post_processor"] =
        json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
    let mut plain = lower.clone();
    plain["post_processor"] = Value::Null;
    plain["model"]["unk_token"] = json!("unk");
    let mut all = some();
    all.extend(real_list());
    all.extend([
        both("small", &lower),
        both("five characters", &few),
        both("old", &old),
        both("no special tokens", &plain),
        both("no prefix", &small([true; 4], "")),
        both("a letter as prefix", &small([true; 4], "a")),
        both("added tokens", &with_added()),
        list(
            "a list",
            &format!("{}\r\n", tokens("##").join("  \r\n")),
            false,
        ),
    ]);
    all
}
