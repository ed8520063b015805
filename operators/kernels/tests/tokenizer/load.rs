//! What a file may say, and the exact words about what it may not.

use kernels::tokenizer::WordPiece;
use serde_json::{Value, json};

use super::models::small;

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut file = small([true; 4], "##");
    change(&mut file);
    match WordPiece::parse(file.to_string().as_bytes()) {
        Ok(_) => panic!("it was read"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn other_kinds_of_tokenizers_are_named() {
    assert_eq!(
        refused(|file| file["model"]["type"] = json!("BPE")),
        "model.type is 'BPE', expected 'WordPiece'"
    );
    assert_eq!(
        refused(|file| file["normalizer"] = json!({"type": "Sequence", "normalizers": []})),
        "normalizer.type is 'Sequence', expected 'BertNormalizer'"
    );
    assert_eq!(
        refused(|file| file["normalizer"] = Value::Null),
        "normalizer is missing, expected 'BertNormalizer'"
    );
    assert_eq!(
        refused(|file| file["pre_tokenizer"]["type"] = json!("Whitespace")),
        "pre_tokenizer.type is 'Whitespace', expected 'BertPreTokenizer'"
    );
    assert_eq!(
        refused(|file| file["post_processor"]["type"] = json!("RobertaProcessing")),
        "post_processor.type is 'RobertaProcessing', expected 'TemplateProcessing' or 'BertProcessing'"
    );
    assert_eq!(
        refused(|file| file["version"] = json!("2.0")),
        "version is '2.0', expected '1.0'"
    );
}

#[test]
fn fields_that_are_missing_or_wrong_are_named() {
    assert_eq!(
        refused(|file| file["normalizer"]["lowercase"] = json!("yes")),
        "normalizer.lowercase is 'yes', expected true or false"
    );
    assert_eq!(
        refused(|file| file["model"]["vocab"] = json!([["a", 1.0]])),
        "model.vocab is a list, expected an object of tokens and ids"
    );
    assert_eq!(
        refused(|file| file["model"]["vocab"]["day"] = json!(-1)),
        "model.vocab.day is -1, expected a whole number below 16777216"
    );
    assert_eq!(
        refused(|file| file["model"]["vocab"]["day"] = json!(4)),
        "the tokens '[MASK]' and 'day' have the same id 4"
    );
    assert_eq!(
        refused(|file| file["model"]["unk_token"] = json!("<unk>")),
        "the vocabulary has no '<unk>', which model.unk_token needs"
    );
    assert_eq!(
        refused(|file| file["added_tokens"][4]["id"] = json!(7)),
        "added_tokens[4].id ('[MASK]') is 7, expected 4"
    );
    assert_eq!(
        refused(|file| file["added_tokens"][4]["lstrip"] = Value::Null),
        "added_tokens[4].lstrip is missing, expected true or false"
    );
    assert_eq!(
        refused(|file| file["post_processor"]["single"][1]["Sequence"]["id"] = json!("B")),
        "post_processor.single is another template, expected one sequence A among special tokens, \
         all with type_id 0"
    );
    assert_eq!(
        refused(|file| file["post_processor"]["special_tokens"] = json!({})),
        "post_processor.special_tokens.[CLS] is missing, expected an object with ids"
    );
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    let error = |bytes: &[u8]| WordPiece::parse(bytes).err().expect("refused").to_string();
    assert_eq!(
        error(b"{\"version\":"),
        "not JSON: EOF while parsing a value at line 1 column 11"
    );
    assert_eq!(error(b"[]"), "the file is a list, expected an object");
    assert_eq!(error(b"{}"), "model is missing, expected 'WordPiece'");
    let lines = WordPiece::from_vocab("[UNK]\n[CLS]\na", true);
    assert_eq!(
        lines.err().expect("refused").to_string(),
        "the vocabulary has no '[SEP]', which a BERT tokenizer needs"
    );
}

#[test]
fn truncation_and_padding_are_told_and_not_applied() {
    let mut file = small([true; 4], "##");
    let plain = WordPiece::parse(file.to_string().as_bytes()).expect("read");
    assert_eq!((plain.truncation(), plain.is_padded()), (None, false));
    file["truncation"] = json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0});
    let cut = WordPiece::parse(file.to_string().as_bytes()).expect("read");
    assert_eq!((cut.truncation(), cut.is_padded()), (Some(3), true));
    let mut ids = Vec::new();
    cut.encode_into(&mut Default::default(), "a b c d e", 512, &mut ids);
    assert_eq!(ids.len(), 7);
}
