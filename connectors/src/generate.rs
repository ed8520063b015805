//! `FROM GENERATE`: rows and vectors from a seed, for benches and first steps.
//!
//! Row `i` is a pure function of (seed, i), so any number of readers can make the same data and a
//! restart goes on at the position of the last logged batch. A batch has 256 rows or about 2 MB.
//!
//! Vectors are clustered like real embeddings: 2,000 Gaussian centres, unit noise, dimension `i`
//! scaled by (1 + i)^−0.35, normalised. Texts are sentences of made-up English-like words with
//! Zipf's frequencies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::contract::{Source, SourceBatch, SourceContext};
use engine::error::WorldError;
use engine::model::{Column, Key, RowCodec, Schema, SqlType, Value};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Clusters of the vector generator.
const CENTRES: usize = 2_000;
/// Words of the generated language.
const WORDS: usize = 8_000;
/// Rows of one batch, at most.
const BATCH_ROWS: u64 = 256;
/// Bytes of one batch, about.
const BATCH_BYTES: u64 = 2 << 20;
/// Bytes of a row without its vector, generously: the longest texts have about 1,800.
const TEXT_ROW_BYTES: u64 = 2_048;

/// Columns `id` (key), `body`, `grp`, and `embedding` when there are vectors.
pub fn schema(dimensions: Option<u32>) -> Schema {
    let mut columns = vec![
        Column {
            name: "id".to_owned(),
            sql_type: SqlType::Int8,
            nullable: false,
        },
        Column::new("body", SqlType::Text),
        Column::new("grp", SqlType::Int8),
    ];
    columns.extend(dimensions.map(|n| Column::new("embedding", SqlType::Vector(n))));
    Schema {
        columns,
        key: vec![0],
    }
}

/// Makes rows. Cost of [`Generator::new`]: 2,000 × dimensions numbers, once.
pub struct Generator {
    seed: u64,
    words: Vec<String>,
    /// `[CENTRES × dimensions]`, unscaled.
    centres: Vec<f32>,
    scale: Vec<f32>,
}

impl Generator {
    /// A generator; 0 dimensions for texts only.
    pub fn new(seed: u64, dimensions: usize) -> Self {
        Generator::new_unless(seed, dimensions, &|| false).expect("it is never stopped")
    }

    /// As [`Generator::new`], which takes a second or more for thousands of dimensions; `None` when
    /// `is_stopping`, asked once a centre, says so.
    fn new_unless(seed: u64, dimensions: usize, is_stopping: &dyn Fn() -> bool) -> Option<Self> {
        let mut rng = stream(seed, 0);
        let words = (0..WORDS).map(|_| word(&mut rng)).collect();
        let mut centres = Vec::with_capacity(CENTRES * dimensions);
        for _ in 0..CENTRES {
            if is_stopping() {
                return None;
            }
            centres.extend((0..dimensions).map(|_| gaussian(&mut rng)));
        }
        let scale = (0..dimensions)
            .map(|i| (1.0 + i as f32).powf(-0.35))
            .collect();
        Some(Generator {
            seed,
            words,
            centres,
            scale,
        })
    }

    /// The unit vector of row `index`: `dimensions` long.
    pub fn vector(&self, index: u64) -> Vec<f32> {
        // Odd streams for vectors, even ones for texts: neither depends on the other.
        let mut rng = stream(self.seed, 2 * index + 3);
        let dimensions = self.scale.len();
        let centre = rng.random_range(0..CENTRES) * dimensions;
        let mut vector: Vec<f32> = self.centres[centre..centre + dimensions]
            .iter()
            .zip(&self.scale)
            .map(|(centre, scale)| (centre + gaussian(&mut rng)) * scale)
            .collect();
        let norm = vector
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        if norm > 0.0 {
            vector
                .iter_mut()
                .for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
        vector
    }

    /// The text of row `index`: 3 to 12 sentences.
    pub fn text(&self, index: u64) -> String {
        let mut rng = stream(self.seed, 2 * index + 2);
        let mut text = String::new();
        for sentence in 0..rng.random_range(3..=12) {
            if sentence > 0 {
                text.push_str(if rng.random_range(0..4) == 0 {
                    "\n\n"
                } else {
                    " "
                });
            }
            for place in 0..rng.random_range(4..=18) {
                // Log-uniform ranks are Zipf's law with exponent one.
                let rank = (WORDS as f64).powf(rng.random::<f64>()) as usize - 1;
                let word = &self.words[rank.min(WORDS - 1)];
                if place == 0 {
                    text.push_str(&word[..1].to_uppercase());
                    text.push_str(&word[1..]);
                } else {
                    text.push(' ');
                    text.push_str(word);
                }
            }
            text.push('.');
        }
        text
    }

    /// Row `index`, one value per column of [`schema`].
    pub fn row(&self, index: u64) -> Vec<Value> {
        let id = index as i64;
        let mut row = vec![
            Value::Int(id),
            Value::Text(self.text(index).into()),
            Value::Int(id % 100),
        ];
        if !self.scale.is_empty() {
            row.push(Value::Vector(Arc::from(self.vector(index))));
        }
        row
    }
}

fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// Box and Muller's transform.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

fn word(rng: &mut ChaCha8Rng) -> String {
    const HEADS: [&str; 16] = [
        "b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "st", "tr", "pl", "v",
    ];
    const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ea", "ou", "ai"];
    const TAILS: [&str; 8] = ["", "n", "r", "s", "t", "l", "nd", "ck"];
    let syllables = rng.random_range(1..=3);
    (0..syllables)
        .flat_map(|_| {
            [
                HEADS[rng.random_range(0..HEADS.len())],
                VOWELS[rng.random_range(0..VOWELS.len())],
                TAILS[rng.random_range(0..TAILS.len())],
            ]
        })
        .collect()
}

/// The source over a [`Generator`].
pub struct GenerateSource {
    rows: u64,
    rate: u64,
    seed: u64,
    dimensions: Option<u32>,
}

impl GenerateSource {
    /// `rows` rows, `rate` a second (0: as fast as they are taken).
    pub fn new(rows: u64, rate: u64, seed: u64, dimensions: Option<u32>) -> Self {
        GenerateSource {
            rows,
            rate,
            seed,
            dimensions,
        }
    }
}

impl Source for GenerateSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let codec = RowCodec::new(schema(self.dimensions)).expect("types that Arrow can order");
        let dimensions = self.dimensions.unwrap_or(0);
        let is_stopping = || context.is_stopping();
        let generator = Generator::new_unless(self.seed, dimensions as usize, &is_stopping);
        let Some(generator) = generator else {
            return Ok(());
        };
        let row_bytes = TEXT_ROW_BYTES + 4 * u64::from(dimensions);
        let batch_rows = (BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS);
        let position = context.resume.position("");
        let first = position
            .and_then(|position| position["next"].as_u64())
            .unwrap_or(0);
        let begun = Instant::now();
        let mut next = first;
        while next < self.rows && !context.is_stopping() {
            let mut end = self.rows.min(next + batch_rows);
            if self.rate > 0 {
                let due = first as f64 + begun.elapsed().as_secs_f64() * self.rate as f64;
                end = end.min(due as u64 + 1);
            }
            if end <= next {
                let wait = (1e6 / self.rate as f64).min(20_000.0) as u64;
                context.sleep(Duration::from_micros(wait));
                continue;
            }
            let change = |index: u64| {
                let row = codec.pack(&generator.row(index));
                (Key::from_json(&json!(index)), Some(row), None)
            };
            let batch = SourceBatch {
                changes: (next..end).map(change).collect(),
                position: Some(json!({ "next": end })),
                ..SourceBatch::default()
            };
            if context.sink.stage(batch).is_err() {
                return Ok(());
            }
            next = end;
        }
        // A source ends only when it is told to: its collection lives on.
        while context.sleep(Duration::from_millis(200)) {}
        Ok(())
    }
}
