//! Tokenizer speed: tokens a second on one core, ids and spans, beside the `tokenizers` crate.
//!
//! Isolated: text to ids in memory; no model, no queue. Data: the README files of the crates in the
//! user's cargo registry, sorted by path, in parts of about 1,000 bytes cut at line ends, twice: as
//! *prose* (lines of at least eight words that are letters, outside fences) and *whole* (tables, links
//! and code included). No seed: the order is fixed. Vocabulary: the default model's, from the model
//! folder (`HEADWATER_MODELS`). Each round goes through all texts once by each way; medians of rounds.
//! Units: million tokens (special ones left out) per second of one thread; MB of text per second;
//! microseconds a text.
//!
//! ```text
//! cargo bench --bench tokenizer                         # HEADWATER_BENCH_ROUNDS=9
//! ```

#[path = "support/registry.rs"]
mod registry;

use std::path::PathBuf;
use std::time::Instant;

use kernels::tokenizer::{Scratch, WordPiece};
use tokenizers::Tokenizer;

/// Bytes of a text, about.
const TEXT_BYTES: usize = 1000;
/// Rounds measured unless `HEADWATER_BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 9;
/// Of so many texts one goes through what is slow.
const PEER_STEP: usize = 8;

fn main() {
    let rounds = std::env::var("HEADWATER_BENCH_ROUNDS");
    let rounds = rounds.ok().and_then(|v| v.parse().ok()).unwrap_or(ROUNDS);
    let json = std::fs::read(tokenizer_json()).expect("the default model was fetched");
    let started = Instant::now();
    let ours = WordPiece::parse(&json).expect("a WordPiece tokenizer");
    let ours_ms = started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let mut theirs = Tokenizer::from_bytes(&json).expect("a tokenizer");
    let theirs_ms = started.elapsed().as_secs_f64() * 1e3;
    theirs.with_padding(None);
    theirs.with_truncation(None).expect("none is allowed");
    println!("load: ours {ours_ms:.0} ms, tokenizers {theirs_ms:.0} ms");
    println!(
        "resident: {} KiB, scratch {} KiB",
        ours.resident_bytes() >> 10,
        {
            let mut scratch = Scratch::default();
            ours.count(&mut scratch, "");
            scratch.resident_bytes() >> 10
        }
    );
    let readmes = readmes();
    for (name, texts) in [("prose", prose(&readmes)), ("whole", parts(&readmes))] {
        measure(name, &texts, &ours, &theirs, rounds);
    }
}

fn measure(name: &str, texts: &[String], ours: &WordPiece, theirs: &Tokenizer, rounds: usize) {
    let mut scratch = Scratch::default();
    let bytes: usize = texts.iter().map(String::len).sum();
    let tokens: usize = texts
        .iter()
        .map(|text| ours.count(&mut scratch, text))
        .sum();
    let texts_count = texts.len();
    println!(
        "\n{name}: {texts_count} texts, {bytes} bytes, {tokens} tokens ({:.2} bytes a token), {rounds} rounds",
        bytes as f64 / tokens as f64
    );
    println!("                        M tokens/s   MB/s   us a text: p50    p99");
    let mut ways: [Way; 5] = [
        Way::new("ids"),
        Way::new("ids, scratch a text"),
        Way::new("spans"),
        Way::new("count"),
        Way::new("tokenizers encode_fast"),
    ];
    let (mut ids, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        ways[0].round(texts.iter(), |text| {
            ids.clear();
            ours.encode_into(&mut scratch, text, usize::MAX, &mut ids);
            ids.len() - 2
        });
        ways[1].round(texts.iter().step_by(PEER_STEP), |text| {
            ids.clear();
            ours.encode_into(&mut Scratch::default(), text, usize::MAX, &mut ids);
            ids.len() - 2
        });
        ways[2].round(texts.iter(), |text| {
            starts.clear();
            ends.clear();
            ours.spans(&mut scratch, text, &mut starts, &mut ends);
            starts.len()
        });
        ways[3].round(texts.iter(), |text| ours.count(&mut scratch, text));
        ways[4].round(texts.iter().step_by(PEER_STEP), |text| {
            theirs.encode_fast(text, true).expect("encodes").len() - 2
        });
    }
    for way in &mut ways {
        way.print();
    }
}

/// One way to do it, with its times.
struct Way {
    name: &'static str,
    /// (tokens, bytes, seconds) of each round.
    rounds: Vec<(f64, f64, f64)>,
    /// Of each text, in all rounds.
    micros: Vec<f32>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Way {
            name,
            rounds: Vec::new(),
            micros: Vec::new(),
        }
    }

    /// Goes through some texts to warm up (another way was here before), then through all twice: for the
    /// sum, and for each text's own time.
    fn round<'a>(
        &mut self,
        texts: impl Iterator<Item = &'a String> + Clone,
        mut tokens: impl FnMut(&str) -> usize,
    ) {
        for text in texts.clone().step_by(4) {
            std::hint::black_box(tokens(text));
        }
        let (mut sum, mut bytes) = (0, 0);
        let started = Instant::now();
        for text in texts.clone() {
            sum += std::hint::black_box(tokens(text));
            bytes += text.len();
        }
        let seconds = started.elapsed().as_secs_f64();
        self.rounds.push((sum as f64, bytes as f64, seconds));
        for text in texts {
            let started = Instant::now();
            std::hint::black_box(tokens(text));
            self.micros.push(started.elapsed().as_secs_f32() * 1e6);
        }
    }

    fn print(&mut self) {
        self.rounds.sort_by(|a, b| a.2.total_cmp(&b.2));
        let (tokens, bytes, seconds) = self.rounds[self.rounds.len() / 2];
        self.micros.sort_by(f32::total_cmp);
        let quantile = |q: f64| self.micros[((self.micros.len() - 1) as f64 * q) as usize];
        println!(
            "{:<24}{:>10.1}{:>7.0}{:>17.1}{:>7.1}",
            self.name,
            tokens / seconds / 1e6,
            bytes / seconds / 1e6,
            quantile(0.5),
            quantile(0.99)
        );
    }
}

fn tokenizer_json() -> PathBuf {
    let models = std::env::var_os("HEADWATER_MODELS").map_or_else(
        || home().join(".local/share/headwater/models"),
        PathBuf::from,
    );
    models.join("sentence-transformers--all-MiniLM-L6-v2/tokenizer.json")
}

fn home() -> PathBuf {
    std::env::var_os("HOME").expect("a home folder").into()
}

/// The texts of the registry's README files.
fn readmes() -> Vec<String> {
    let texts: Vec<String> = registry::readmes()
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect();
    assert!(!texts.is_empty(), "the cargo registry has README files");
    texts
}

/// Lines joined to texts of about the same length.
fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut texts = vec![String::new()];
    for line in lines {
        let last = texts.last_mut().expect("one at least");
        last.push_str(line);
        last.push('\n');
        if last.len() >= TEXT_BYTES {
            texts.push(String::new());
        }
    }
    texts.retain(|text| !text.is_empty());
    texts
}

fn parts(readmes: &[String]) -> Vec<String> {
    readmes
        .iter()
        .flat_map(|text| joined(text.lines()))
        .collect()
}

fn prose(readmes: &[String]) -> Vec<String> {
    let is_prose = |line: &str| {
        let letters = line
            .bytes()
            .filter(|byte| byte.is_ascii_alphabetic() || b" ,.".contains(byte));
        line.split(' ').count() >= 8 && letters.count() * 100 >= line.len() * 95
    };
    let outside = readmes
        .iter()
        .flat_map(|text| text.split("```").step_by(2))
        .flat_map(str::lines);
    joined(outside.filter(|line| is_prose(line)))
}
