//! Lower precision must not change what is found: nDCG@10 within half a percent of full precision.
//!
//! *Known items*: each paragraph of this project's manual loses sentences, which become questions whose one
//! relevant text is the rest of the paragraph. The paragraphs are frozen (`tests/data/ranking/manual.txt`, of
//! November 2026): over texts that change from week to week, chance would fail a build. *Lee*: fifty news texts with people's judgements of how alike
//! each pair is ("An Empirical Evaluation of Models of Text Document Similarity", Lee, Pincombe and Welsh
//! 2005), which gensim's package carries; `benches/compare/lee.sh` fetches them and runs it.

use std::path::Path;

use operators::embed::weights::{DEFAULT_MODEL, pull};
use operators::embed::{Kernel, local};

/// How much of the quality may be lost.
const LOSS_MAX: f64 = 0.005;
/// How deep a ranking is looked at.
const DEPTH: usize = 10;

fn embed(kernel: Kernel, texts: &[String]) -> Vec<Vec<f32>> {
    let folder = pull(DEFAULT_MODEL, &|_| {}).unwrap();
    let model = local(&folder, kernel).unwrap().model;
    let half = texts.len() / 2;
    let part = |texts: &[String]| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        model.embed(&texts).unwrap()
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| part(&texts[..half]));
        let rest = part(&texts[half..]);
        let mut all = first.join().unwrap();
        all.extend(rest);
        all
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
    products.sum()
}

/// Normalized discounted cumulative gain of the first [`DEPTH`], by the gains of all items in the order
/// that scores put them in (Järvelin and Kekäläinen 2002).
fn ndcg(scores: &[f64], gains: &[f64]) -> f64 {
    let sum = |order: &[usize]| -> f64 {
        let discounted = order.iter().take(DEPTH).zip(2_u32..);
        discounted
            .map(|(&item, rank)| gains[item] / f64::from(rank).log2())
            .sum()
    };
    let order = |by: &[f64]| {
        let mut order: Vec<usize> = (0..by.len()).collect();
        order.sort_by(|&a, &b| by[b].total_cmp(&by[a]));
        order
    };
    sum(&order(scores)) / sum(&order(gains))
}

/// Mean nDCG of each precision: `gains[question][item]`.
fn quality(
    questions: &[String],
    items: &[String],
    gains: impl Fn(usize, usize) -> f64,
) -> [f64; 3] {
    let all: Vec<String> = questions.iter().chain(items).cloned().collect();
    Kernel::ALL.map(|kernel| {
        let vectors = embed(kernel, &all);
        let (asked, found) = vectors.split_at(questions.len());
        let each = asked.iter().enumerate().map(|(question, vector)| {
            let scores: Vec<f64> = found.iter().map(|item| cosine(vector, item)).collect();
            let gains: Vec<f64> = (0..items.len()).map(|item| gains(question, item)).collect();
            ndcg(&scores, &gains)
        });
        each.sum::<f64>() / questions.len() as f64
    })
}

fn hold(what: &str, quality: [f64; 3]) {
    let [full, others @ ..] = quality;
    println!("{what}: nDCG@{DEPTH} of f32, bf16, int8: {quality:.4?}");
    for (kernel, other) in Kernel::ALL[1..].iter().zip(others) {
        let loss = (full - other) / full;
        assert!(
            loss <= LOSS_MAX,
            "{what}: {} ranks {:.2} % worse than f32: {quality:?}",
            kernel.name(),
            loss * 100.0
        );
    }
}

/// Sentences of prose of a length that people ask in.
fn sentences(paragraph: &str) -> Vec<&str> {
    let ends = paragraph.split_inclusive(". ");
    let ends = ends.flat_map(|part| part.split_inclusive("; "));
    let words = |sentence: &str| sentence.split_whitespace().count();
    ends.filter(|sentence| (6..=40).contains(&words(sentence)))
        .collect()
}

/// Texts without the sentences that are asked for them.
#[derive(Default)]
struct KnownItems {
    questions: Vec<String>,
    items: Vec<String>,
    /// Of each question, which item is meant.
    relevant: Vec<usize>,
}

impl KnownItems {
    fn add(&mut self, text: &str, asked: &[&str]) {
        let mut rest = text.to_owned();
        for sentence in asked {
            rest = rest.replacen(sentence, "", 1);
            self.questions.push(sentence.trim().to_owned());
            self.relevant.push(self.items.len());
        }
        self.items.push(rest);
    }

    /// What `hold` does, for at least 500 questions.
    fn hold(&self, what: &str) {
        let (questions, items) = (self.questions.len(), self.items.len());
        assert!(questions >= 500, "only {questions} questions");
        let gain = |question: usize, item| f64::from(u8::from(self.relevant[question] == item));
        let what = format!("{what}, {questions} questions, {items} items");
        hold(&what, quality(&self.questions, &self.items, gain));
    }
}

#[test]
fn known_items_of_the_manual_are_found_alike() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/ranking/manual.txt");
    let mut known = KnownItems::default();
    for paragraph in std::fs::read_to_string(data).unwrap().lines() {
        let mut asked = sentences(paragraph);
        // The longest stays: it is what is to be found.
        let Some(kept) = asked.iter().copied().max_by_key(|sentence| sentence.len()) else {
            continue;
        };
        asked.retain(|sentence| *sentence != kept);
        known.add(paragraph, &asked);
    }
    known.hold("the manual");
}

#[test]
#[ignore = "needs gensim's test data: benches/compare/lee.sh"]
fn news_are_alike_as_people_say() {
    let folder = std::env::var("HEADWATER_LEE").expect("the folder of lee.cor");
    let read = |file: &str| {
        let bytes = std::fs::read(Path::new(&folder).join(file)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let texts: Vec<String> = read("lee.cor").lines().map(str::to_owned).collect();
    let judged: Vec<Vec<f64>> = read("similarities0-1.txt")
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(|x| x.parse().unwrap())
                .collect()
        })
        .collect();
    assert_eq!((texts.len(), judged.len()), (50, 50));
    // How alike a text is to itself is no question.
    let gain = |a: usize, b: usize| {
        if a == b {
            0.0
        } else {
            judged[a][b].max(judged[b][a])
        }
    };
    let vectors = Kernel::ALL.map(|kernel| embed(kernel, &texts));
    let quality = vectors.map(|vectors| {
        let each = (0..texts.len()).map(|a| {
            let others = || (0..texts.len()).filter(|b| *b != a);
            let scores: Vec<f64> = others().map(|b| cosine(&vectors[a], &vectors[b])).collect();
            let gains: Vec<f64> = others().map(|b| gain(a, b)).collect();
            ndcg(&scores, &gains)
        });
        each.sum::<f64>() / texts.len() as f64
    });
    hold("Lee, graded by people", quality);
    let background: Vec<String> = read("lee_background.cor")
        .lines()
        .map(str::to_owned)
        .collect();
    let mut known = KnownItems::default();
    for text in texts.iter().chain(&background) {
        let mut asked = sentences(text);
        asked.truncate(2);
        known.add(text, &asked);
    }
    known.hold("Lee");
}
