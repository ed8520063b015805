//! The naive model: a list of everything that happened, recomputed for each question.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::model::{ChunkId, ChunkPiece, ContentHash, Key, Row, Time};

use super::super::*;

/// A document as the model keeps it.
pub(super) type State = Option<Arc<DocumentState>>;

#[derive(Default)]
pub(super) struct Model {
    /// In time order.
    documents: Vec<(Time, Key, State)>,
    vectors: HashMap<ContentHash, (Time, Arc<[f32]>)>,
}

/// A hit in comparable form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hit {
    pub(super) chunk: ChunkId,
    pub(super) version: u64,
    pub(super) ordinal: u32,
    pub(super) score: f64,
}

struct Live<'a> {
    chunk: ChunkId,
    ordinal: u32,
    document: &'a Key,
    state: &'a Arc<DocumentState>,
    words: Vec<&'a str>,
    vector: Option<&'a Arc<[f32]>>,
}

impl Model {
    pub(super) fn apply_document(&mut self, at: Time, key: &Key, state: State) {
        self.documents.push((at, key.clone(), state));
    }

    pub(super) fn apply_vector(&mut self, at: Time, content: ContentHash, vector: Arc<[f32]>) {
        self.vectors.entry(content).or_insert((at, vector));
    }

    pub(super) fn vector(&self, content: ContentHash) -> Option<Arc<[f32]>> {
        self.vectors.get(&content).map(|(_, vector)| vector.clone())
    }

    fn documents(&self, at: Time) -> BTreeMap<&Key, &Arc<DocumentState>> {
        let mut newest = BTreeMap::new();
        for (_, key, state) in self.documents.iter().filter(|(then, _, _)| *then <= at) {
            newest.insert(key, state.as_ref());
        }
        newest
            .into_iter()
            .filter_map(|(key, state)| Some((key, state?)))
            .collect()
    }

    fn live(&self, at: Time) -> Vec<Live<'_>> {
        let mut live = Vec::new();
        for (document, state) in self.documents(at) {
            for (ordinal, chunk) in state.chunks.iter().enumerate() {
                let text = state.text_of(&chunk.piece);
                if text.trim().is_empty() {
                    continue;
                }
                let known = self.vectors.get(&chunk.piece.content);
                live.push(Live {
                    chunk: chunk.id,
                    ordinal: ordinal as u32,
                    document,
                    state,
                    words: text.split_whitespace().collect(),
                    vector: known
                        .filter(|(then, _)| *then <= at)
                        .map(|(_, vector)| vector),
                });
            }
        }
        live
    }

    pub(super) fn document(&self, key: &Key, at: Time) -> Option<Arc<DocumentState>> {
        self.documents(at).get(key).map(|state| (*state).clone())
    }

    pub(super) fn pending(&self, at: Time) -> u64 {
        let live = self.live(at);
        let mut pending: Vec<&Key> = live
            .iter()
            .filter(|chunk| chunk.vector.is_none())
            .map(|c| c.document)
            .collect();
        pending.dedup();
        pending.len() as u64
    }

    pub(super) fn statistics(&self, words: &[String], at: Time) -> Statistics {
        let live = self.live(at);
        Statistics {
            chunks: live.len() as u64,
            length: live.iter().map(|chunk| chunk.words.len() as u64).sum(),
            frequencies: words
                .iter()
                .map(|word| {
                    live.iter()
                        .filter(|c| c.words.contains(&word.as_str()))
                        .count() as u64
                })
                .collect(),
        }
    }

    /// Also whether two different scores are so near that rounding may swap them.
    ///
    /// The exact answer, from the formulas of API §3. `words` are the question's, with repetitions.
    pub(super) fn search(
        &self,
        question: &ShardQuestion,
        words: &[String],
        admits: &dyn Fn(&Row) -> bool,
        at: Time,
    ) -> (Vec<Hit>, bool) {
        let all = self.live(at);
        let count = all.len() as f64;
        let average = all.iter().map(|c| c.words.len() as f64).sum::<f64>() / count.max(1.0);
        let idf = |word: &str| {
            let df = all.iter().filter(|c| c.words.contains(&word)).count() as f64;
            (1.0 + (count - df + 0.5) / (df + 0.5)).ln()
        };
        let bound: f64 = words.iter().map(|word| idf(word) * 2.2).sum();
        let legs = question.legs();
        let mut scored = Vec::new();
        for chunk in all.iter().filter(|chunk| admits(&chunk.state.attributes)) {
            // API §3 with its factors grouped as the shard groups them, so that what ties there
            // ties here: 1.2 · (0.25 + 0.75 · x) = 0.3 + 0.9 · x.
            let bm25: f64 = question
                .weighted_terms()
                .iter()
                .map(|(term, times)| {
                    let is_it = |word: &&str| Term::of(word) == *term;
                    let word = words.iter().find(|word| Term::of(word) == *term).unwrap();
                    let tf = chunk
                        .words
                        .iter()
                        .copied()
                        .filter(|word| is_it(word))
                        .count() as f64;
                    let norm = tf + 0.3 + 0.9 / average * chunk.words.len() as f64;
                    idf(word) * f64::from(*times) * 2.2 * tf / norm
                })
                .sum();
            let vector = question.vector.as_ref().zip(chunk.vector);
            let cosine = vector.map(|(question, vector)| rounded_cosine(question, vector));
            scored.push((chunk, bm25, cosine));
        }
        let near = |scores: &mut Vec<f64>| {
            scores.sort_by(f64::total_cmp);
            scores
                .windows(2)
                .any(|pair| pair[0] != pair[1] && pair[1] - pair[0] < 1e-6)
        };
        let mut is_ambiguous = near(&mut scored.iter().map(|s| s.1).collect())
            || near(&mut scored.iter().filter_map(|s| s.2).collect());
        let rank_in = |leg: &dyn Fn(&(&Live, f64, Option<f64>)) -> Option<f64>, chunk: ChunkId| {
            let own = scored.iter().find(|s| s.0.chunk == chunk).and_then(leg)?;
            let ahead = scored
                .iter()
                .filter(|s| leg(s).is_some_and(|x| x > own || x == own && s.0.chunk < chunk));
            Some(ahead.count() + 1).filter(|rank| *rank <= question.pool())
        };
        let score = |entry: &(&Live, f64, Option<f64>)| match (legs.vector, legs.keyword) {
            (true, false) => entry.2,
            (false, false) => None,
            (false, true) => Some(entry.1).filter(|bm25| *bm25 > 0.0),
            _ => match question.fusion {
                Fusion::Convex { weight } => {
                    let said = if bound > 0.0 { entry.1 / bound } else { 0.0 };
                    let near = entry.2.map_or(0.0, |cosine| (1.0 + cosine) / 2.0);
                    Some(weight * near + (1.0 - weight) * said)
                }
                Fusion::Rrf => {
                    let ranks = [
                        rank_in(&|s| s.2, entry.0.chunk),
                        rank_in(&|s| Some(s.1).filter(|bm25| *bm25 > 0.0), entry.0.chunk),
                    ];
                    let terms = ranks
                        .iter()
                        .flatten()
                        .map(|rank| 1.0 / (60.0 + *rank as f64));
                    (ranks != [None, None]).then(|| terms.sum())
                }
            },
        };
        let mut hits: Vec<(&Key, Hit)> = scored
            .iter()
            .filter_map(|entry| {
                let hit = Hit {
                    chunk: entry.0.chunk,
                    version: entry.0.state.version,
                    ordinal: entry.0.ordinal,
                    score: score(entry)?,
                };
                Some((entry.0.document, hit))
            })
            .collect();
        hits.sort_by(|a, b| {
            b.1.score
                .total_cmp(&a.1.score)
                .then_with(|| a.1.chunk.cmp(&b.1.chunk))
        });
        is_ambiguous |= near(&mut hits.iter().map(|(_, hit)| hit.score).collect());
        let mut taken: HashMap<&Key, usize> = HashMap::new();
        hits.retain(|(document, _)| {
            let of_document = taken.entry(document).or_default();
            *of_document += 1;
            question
                .per_document
                .is_none_or(|most| *of_document <= most)
        });
        hits.retain(|(_, hit)| question.min_score.is_none_or(|least| hit.score >= least));
        hits.truncate(question.k);
        (hits.into_iter().map(|(_, hit)| hit).collect(), is_ambiguous)
    }
}

/// The cosine between a unit question and the bf16 rounding of a vector, in f64.
fn rounded_cosine(question: &[f32], vector: &[f32]) -> f64 {
    let rounded: Vec<f64> = vector
        .iter()
        .map(|x| half::bf16::from_f32(*x).to_f64())
        .collect();
    let norm = rounded.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot: f64 = question
        .iter()
        .zip(&rounded)
        .map(|(a, b)| f64::from(*a) * b)
        .sum();
    if norm == 0.0 { 0.0 } else { dot / norm }
}

/// A document whose chunks are the given texts.
pub(super) fn document(key: &Key, version: u64, group: u8, texts: &[String]) -> Arc<DocumentState> {
    let mut text = String::new();
    let mut seen: HashMap<&String, u32> = HashMap::new();
    let mut chunks = Vec::new();
    for piece in texts {
        let start = text.len() as u32;
        text.push_str(piece);
        let content = ContentHash::of(piece.as_bytes());
        let occurrence = seen.entry(piece).or_default();
        let id = ChunkId::new("s", key, "none", content, *occurrence);
        let range = (start, text.len() as u32);
        let heading = Arc::from([]);
        let piece = ChunkPiece {
            range,
            content,
            occurrence: *occurrence,
            heading,
        };
        chunks.push(ShardChunk { id, piece });
        *occurrence += 1;
        text.push('\n');
    }
    Arc::new(DocumentState {
        version,
        attributes: Row::from_bytes(&[group]),
        text: text.into(),
        chunks: chunks.into(),
    })
}
