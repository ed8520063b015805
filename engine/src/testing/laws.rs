//! Laws of the contracts, as assertions that each implementation's tests call.

use crate::contract::Embedder;

/// Texts of all kinds: empty, tiny, scripts, controls, code, longer than any model's maximum.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "a",
        "Hello, world!",
        "naïve café — Ärger, e\u{301}",
        "漢字とかな混じり 文。",
        "مرحبا بالعالم",
        "한국어 문장",
        "line\r\nbreak\ttab\u{0}nul\u{7f}",
        "fn main() { println!(\"{}\", 1 << 20); }",
        "[CLS] literal [SEP] tokens [MASK]",
        "🙂👩‍👩‍👧‍👦 emoji",
        "3.14159 1,000,000 0x1F 2FA 3FA",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("word ".repeat(2_000));
    texts.push("x".repeat(5_000));
    texts
}

/// Panics when an embedder breaks a law of [`Embedder`].
pub fn embedder_laws(embedder: &dyn Embedder) {
    let texts = texts();
    let alone: Vec<Vec<f32>> = texts.iter().map(|text| one(embedder, text)).collect();
    let slices: Vec<&str> = texts.iter().map(String::as_str).collect();

    let together = embedder
        .embed(&slices)
        .expect("a batch of good texts is embedded");
    assert_eq!(
        together, alone,
        "a vector must not depend on what shares its batch"
    );
    let mut reversed = embedder
        .embed(&slices.iter().rev().copied().collect::<Vec<_>>())
        .expect("a batch of good texts is embedded");
    reversed.reverse();
    assert_eq!(
        reversed, alone,
        "a vector must not depend on its place in the batch"
    );
    assert!(
        embedder
            .embed(&[])
            .expect("an empty batch is no error")
            .is_empty()
    );

    for (text, vector) in texts.iter().zip(&alone) {
        assert_eq!(
            vector.len(),
            embedder.dimensions(),
            "length of the vector of {text:.40?}"
        );
        assert!(
            vector.iter().all(|x| x.is_finite()),
            "components of {text:.40?} are finite"
        );
        let norm = vector
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{text:.40?} has length {norm}");
        spans_law(embedder, text);
    }
    assert!(
        embedder.special_tokens() < embedder.max_tokens(),
        "there is room for text"
    );
}

fn one(embedder: &dyn Embedder, text: &str) -> Vec<f32> {
    let mut vectors = embedder.embed(&[text]).expect("a good text is embedded");
    assert_eq!(vectors.len(), 1, "one vector a text");
    vectors.remove(0)
}

/// Spans lie inside the text on character boundaries, in order, and cover all words.
fn spans_law(embedder: &dyn Embedder, text: &str) {
    let spans = embedder.token_spans(text);
    assert_eq!(spans.starts.len(), spans.ends.len(), "one end a start");
    let pairs = spans.starts.iter().zip(&spans.ends);
    for (&start, &end) in pairs {
        assert!(
            start <= end && end as usize <= text.len(),
            "a span lies in {text:.40?}"
        );
        assert!(
            text.is_char_boundary(start as usize) && text.is_char_boundary(end as usize),
            "{start}..{end} cuts a character of {text:.40?}"
        );
    }
    assert!(
        spans.starts.is_sorted() && spans.ends.is_sorted(),
        "spans are in order"
    );
    let mut at = 0;
    for (&start, &end) in spans.starts.iter().zip(&spans.ends) {
        let gap = text.get(at..start as usize).unwrap_or_default();
        assert!(
            !gap.chars().any(char::is_alphanumeric),
            "{gap:?} of {text:.40?} belongs to no token"
        );
        at = at.max(end as usize);
    }
}
