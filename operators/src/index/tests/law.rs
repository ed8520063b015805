//! Law: at every `since ≤ T ≤ now`, after any interleaving of changes, facts, compaction and
//! maintenance, a shard answers as the naive model recomputes, however many shards there are.

use std::sync::Arc;

use engine::model::{ContentHash, Key, Row, Time};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::*;
use super::model::{Hit, Model, document};

const DIMENSIONS: usize = 40;

fn config(head_max: usize) -> ShardConfig {
    ShardConfig {
        dimensions: Some(DIMENSIONS),
        keyword: true,
        analyzer: Analyzer::simple(),
        quantization: Quantization::Bf16,
        head_max,
        builder: BuilderHandle::inline(),
    }
}

fn random_unit(rng: &mut impl Rng) -> Arc<[f32]> {
    let raw: Vec<f32> = (0..DIMENSIONS)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    unit(&raw).unwrap().into()
}

/// The vector of a text is a function of the text.
fn vector_of(content: ContentHash) -> Arc<[f32]> {
    let seed = u64::from_le_bytes(content.0[..8].try_into().unwrap());
    random_unit(&mut ChaCha8Rng::seed_from_u64(seed))
}

fn random_text(rng: &mut impl Rng) -> String {
    let words = rng.random_range(0..6usize);
    // A skewed vocabulary: common words and rare ones.
    let word = |rng: &mut dyn FnMut() -> f64| format!("w{}", (rng().powi(3) * 30.0) as u32);
    let mut uniform = || rng.random_range(0.0..1.0f64);
    (0..words)
        .map(|_| word(&mut uniform))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Several shards over one stream, as workers would hold them.
struct Fleet {
    shards: Vec<Shard>,
}

impl Fleet {
    fn new(count: usize, head_max: usize) -> Self {
        Fleet {
            shards: (0..count).map(|_| Shard::new(config(head_max))).collect(),
        }
    }

    fn owner(&mut self, key: &Key) -> &mut Shard {
        let count = self.shards.len() as u64;
        &mut self.shards[(key.shard_hash() % count) as usize]
    }

    fn statistics(&self, question: &ShardQuestion, at: Time) -> Statistics {
        let mut sum = Statistics::default();
        for shard in &self.shards {
            sum.add(&shard.statistics(&question.distinct_terms(), at));
        }
        sum
    }

    fn search(&self, question: &ShardQuestion, filter: Option<Filter>, at: Time) -> Merged {
        let statistics = self.statistics(question, at);
        let partials = self
            .shards
            .iter()
            .map(|shard| shard.search(question, filter, &statistics, at))
            .collect();
        merge(partials, question, &statistics)
    }
}

struct Script {
    rng: ChaCha8Rng,
    model: Model,
    fleets: Vec<Fleet>,
    now: Time,
    since: Time,
    known: Vec<ContentHash>,
    missing: Vec<ContentHash>,
    version: u64,
    compared: usize,
    ambiguous: usize,
}

impl Script {
    fn key(&mut self) -> Key {
        Key::text(&format!("d{}", self.rng.random_range(0..12)))
    }

    fn change_document(&mut self) {
        let key = self.key();
        let current = self.model.document(&key, self.now);
        let state = match (self.rng.random_range(0..10), current) {
            (0..2, _) => None,
            (2..7, Some(current)) => {
                // An edit: keep most texts, change, insert, move or drop one.
                let mut texts: Vec<String> = current
                    .chunks
                    .iter()
                    .map(|chunk| current.text_of(&chunk.piece).to_owned())
                    .collect();
                let place = self.rng.random_range(0..=texts.len());
                match self.rng.random_range(0..4) {
                    0 => texts.insert(place, random_text(&mut self.rng)),
                    1 if place < texts.len() => texts[place] = random_text(&mut self.rng),
                    2 if place < texts.len() => drop(texts.remove(place)),
                    _ => {
                        let by = usize::from(!texts.is_empty());
                        texts.rotate_left(by);
                    }
                }
                Some(texts)
            }
            _ => {
                let pieces = self.rng.random_range(0..6usize);
                Some((0..pieces).map(|_| random_text(&mut self.rng)).collect())
            }
        };
        self.version += 1;
        let group = self.rng.random_range(0..4);
        let state = state.map(|texts| document(&key, self.version, group, &texts));
        // Some contents are embedded already or with the row, some come late.
        for chunk in state.iter().flat_map(|state| state.chunks.iter()) {
            let content = chunk.piece.content;
            if self.known.contains(&content) || self.missing.contains(&content) {
                continue;
            }
            if self.rng.random_bool(0.6) {
                self.learn(content);
            } else {
                self.missing.push(content);
            }
        }
        for fleet in &mut self.fleets {
            let known = |content| self.model.vector(content);
            fleet
                .owner(&key)
                .apply_document(self.now, &key, state.clone(), &known);
        }
        self.model.apply_document(self.now, &key, state);
    }

    fn learn(&mut self, content: ContentHash) {
        let vector = vector_of(content);
        self.known.push(content);
        self.model.apply_vector(self.now, content, vector.clone());
        for fleet in &mut self.fleets {
            for shard in &mut fleet.shards {
                shard.apply_vector(self.now, content, &vector);
            }
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..20) {
            0..10 => self.change_document(),
            10..13 => {
                if !self.missing.is_empty() {
                    let i = self.rng.random_range(0..self.missing.len());
                    let content = self.missing.swap_remove(i);
                    self.learn(content);
                }
            }
            13 => {
                self.since = self.rng.random_range(self.since..=self.now);
                let since = self.since;
                self.each(|shard| shard.compact(since));
            }
            14..17 => self.each(|shard| {
                shard.maintain();
            }),
            _ => self.now += self.rng.random_range(1..3u64),
        }
    }

    fn each(&mut self, act: impl Fn(&mut Shard)) {
        self.fleets
            .iter_mut()
            .flat_map(|fleet| &mut fleet.shards)
            .for_each(act);
    }

    fn question(&mut self) -> (ShardQuestion, Vec<String>) {
        let text = random_text(&mut self.rng);
        let words = text.split_whitespace().map(str::to_owned).collect();
        let terms = Analyzer::simple().question(&text);
        let rng = &mut self.rng;
        let question = ShardQuestion {
            vector: rng.random_bool(0.8).then(|| random_unit(rng)),
            terms: rng.random_bool(0.8).then(|| terms.into()),
            k: rng.random_range(1..9),
            mode: [Mode::Hybrid, Mode::Hybrid, Mode::Vector, Mode::Keyword][rng.random_range(0..4)],
            fusion: match rng.random_range(0..3) {
                0 => Fusion::Rrf,
                1 => Fusion::default(),
                _ => Fusion::Convex {
                    weight: rng.random_range(0.0..1.0),
                },
            },
            is_exact: true,
            per_document: rng.random_bool(0.3).then(|| rng.random_range(1..3)),
            min_score: rng.random_bool(0.2).then(|| rng.random_range(0.0..0.8)),
        };
        (question, words)
    }

    fn check(&mut self) {
        let at = self.rng.random_range(self.since..=self.now);
        let (question, words) = self.question();
        let group = self.rng.random_range(0..5u8);
        let admits = |row: &Row| group == 4 || row.as_bytes()[0] == group;
        let batch = |rows: &[&Row]| rows.iter().map(|row| admits(row)).collect::<Vec<_>>();
        let filter = (group < 4 || self.rng.random_bool(0.5)).then_some(&batch as Filter);
        let (expected, is_ambiguous) = self.model.search(&question, &words, &admits, at);
        let mut distinct = words.clone();
        distinct.sort();
        distinct.dedup();
        let terms: Vec<Term> = distinct.iter().map(|word| Term::of(word)).collect();
        let mut first: Option<Merged> = None;
        for fleet in &self.fleets {
            let found = fleet.search(&question, filter, at);
            if is_ambiguous {
                self.ambiguous += 1;
            } else {
                self.compared += 1;
                assert_same(&expected, &found, &question);
            }
            // The default search is exact here as well (few rows are scanned), but has no candidates
            // that are in neither leg.
            let in_a_leg =
                |hit: &Ranked| hit.candidate.cosine.is_some() || hit.candidate.bm25 > 0.0;
            let all_fit = self.model.statistics(&[], at).chunks <= question.pool() as u64;
            if all_fit && found.hits.iter().all(in_a_leg) {
                let default = ShardQuestion {
                    is_exact: false,
                    ..question.clone()
                };
                assert_eq!(fleet.search(&default, filter, at).hits, found.hits);
            }
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(&found, first, "bitwise equal over any number of shards"),
            }
            let mut statistics = Statistics::default();
            let mut pending = 0;
            for shard in &fleet.shards {
                statistics.add(&shard.statistics(&terms, at));
                pending += shard.pending_documents(at);
            }
            assert_eq!(statistics, self.model.statistics(&distinct, at));
            assert_eq!(pending, self.model.pending(at));
        }
        let key = self.key();
        let expected = self.model.document(&key, at);
        for fleet in &mut self.fleets {
            let view = fleet.owner(&key).document(&key, at);
            assert_eq!(view.map(|view| view.state), expected);
        }
    }
}

fn assert_same(expected: &[Hit], found: &Merged, question: &ShardQuestion) {
    let found: Vec<Hit> = found
        .hits
        .iter()
        .map(|hit| Hit {
            chunk: hit.candidate.chunk,
            version: hit.candidate.state.version,
            ordinal: hit.candidate.ordinal,
            score: hit.score,
        })
        .collect();
    assert_eq!(
        expected.len(),
        found.len(),
        "{question:?}\n{expected:#?}\n{found:#?}"
    );
    for (expected, found) in expected.iter().zip(&found) {
        assert!(
            (expected.score - found.score).abs() < 1e-6,
            "{expected:?} {found:?}"
        );
        // Equal texts in two documents tie exactly in the shard and within rounding in the model.
        assert_eq!(expected.chunk, found.chunk, "{question:?}");
        assert_eq!(
            (expected.version, expected.ordinal),
            (found.version, found.ordinal)
        );
    }
}

#[test]
fn shards_answer_as_the_naive_model_at_every_readable_time() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut script = Script {
            rng: ChaCha8Rng::seed_from_u64(seed),
            model: Model::default(),
            fleets: vec![Fleet::new(1, 8), Fleet::new(2, 8), Fleet::new(4, 3)],
            now: 1,
            since: 0,
            known: Vec::new(),
            missing: Vec::new(),
            version: 0,
            compared: 0,
            ambiguous: 0,
        };
        for _ in 0..200 {
            script.step();
            if script.rng.random_bool(0.3) {
                script.check();
            }
        }
        script.finish();
        assert!(
            script.compared > 10 * script.ambiguous,
            "{} unclear",
            script.ambiguous
        );
    }
}

impl Script {
    /// Deletes everything, forgets the past, and looks for what was left behind.
    fn finish(&mut self) {
        self.now += 1;
        for i in 0..12 {
            let key = Key::text(&format!("d{i}"));
            for fleet in &mut self.fleets {
                fleet
                    .owner(&key)
                    .apply_document(self.now, &key, None, &|_| None);
            }
        }
        let since = self.now;
        self.each(|shard| {
            shard.compact(since);
            while shard.maintain() != Maintenance::default() {}
            let sizes = shard.sizes();
            assert_eq!(
                (sizes.chunks_live, sizes.chunks_dead, sizes.documents),
                (0, 0, 0)
            );
            assert_eq!((sizes.terms, sizes.generations), (0, 0), "{sizes:?}");
            assert!(sizes.vectors <= 8);
        });
    }
}
