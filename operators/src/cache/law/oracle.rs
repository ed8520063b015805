//! The naive program: all live chunks in a map, every question answered by scoring all of them.
//!
//! It shares no arithmetic with the cache: cosines in f64, BM25 written out as API §3 has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::model::{ChunkId, Key, Time};

use crate::cache::{
    ChangeKind, ChunkChange, Member, Question, Retrieval, Scoring, Statistics, StatisticsDelta,
};

/// A live chunk.
#[derive(Debug, Clone)]
pub struct Row {
    pub key: Key,
    pub version: u64,
    pub vector: Option<Arc<[f32]>>,
    pub terms: Arc<[(u64, u32)]>,
    pub length: u32,
}

/// The whole index, as a map.
#[derive(Debug, Default)]
pub struct Oracle {
    pub rows: BTreeMap<ChunkId, Row>,
    pub chunks: i64,
    pub length: i64,
    pub df: BTreeMap<u64, i64>,
    delta: StatisticsDelta,
    changes: Vec<ChunkChange>,
}

fn change(chunk: ChunkId, row: &Row, kind: ChangeKind) -> ChunkChange {
    ChunkChange {
        chunk,
        key: row.key.clone(),
        version: row.version,
        kind,
        vector: row.vector.clone(),
        terms: row.terms.clone(),
        length: row.length,
        admitted: true,
    }
}

impl Oracle {
    pub fn appear(&mut self, chunk: ChunkId, row: Row) {
        self.count(&row, 1);
        self.changes.push(change(chunk, &row, ChangeKind::Appeared));
        self.rows.insert(chunk, row);
    }

    pub fn late_vector(&mut self, chunk: ChunkId, vector: Arc<[f32]>) {
        let Some(row) = self.rows.get_mut(&chunk) else {
            return;
        };
        row.vector = Some(vector);
        let change = change(chunk, row, ChangeKind::Appeared);
        self.changes.retain(|known| known.chunk != chunk);
        self.changes.push(change);
    }

    pub fn vanish(&mut self, chunk: ChunkId, version: u64, document_deleted: bool) {
        let Some(mut row) = self.rows.remove(&chunk) else {
            return;
        };
        self.count(&row, -1);
        row.version = version;
        self.changes.push(change(
            chunk,
            &row,
            ChangeKind::Vanished { document_deleted },
        ));
    }

    pub fn reversion(&mut self, chunk: ChunkId, version: u64) {
        let Some(row) = self.rows.get_mut(&chunk) else {
            return;
        };
        row.version = version;
        self.changes
            .push(change(chunk, row, ChangeKind::Reversioned));
    }

    fn count(&mut self, row: &Row, sign: i64) {
        let length = sign * i64::from(row.length);
        self.chunks += sign;
        self.length += length;
        self.delta.chunks += sign;
        self.delta.length += length;
        for (term, _) in row.terms.iter() {
            *self.df.entry(*term).or_default() += sign;
            match self.delta.df.iter_mut().find(|(known, _)| known == term) {
                Some((_, delta)) => *delta += sign,
                None => self.delta.df.push((*term, sign)),
            }
        }
    }

    /// What changed since the last call.
    pub fn take(&mut self) -> (Arc<[ChunkChange]>, StatisticsDelta) {
        (
            std::mem::take(&mut self.changes).into(),
            std::mem::take(&mut self.delta),
        )
    }

    fn bm25(&self, question: &Question, row: &Row) -> f64 {
        let average = self.length as f64 / self.chunks as f64;
        let part = |term: &u64| {
            let Some((_, tf)) = row.terms.iter().find(|(known, _)| known == term) else {
                return 0.0;
            };
            let tf = f64::from(*tf);
            let length = f64::from(row.length);
            self.idf(*term) * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / average))
        };
        question.terms.iter().map(part).sum()
    }

    fn idf(&self, term: u64) -> f64 {
        let df = self.df.get(&term).copied().unwrap_or(0) as f64;
        (1.0 + (self.chunks as f64 - df + 0.5) / (df + 0.5)).ln()
    }

    /// The best k of all rows, with everything a lease needs. `legless`: whether rows in no leg
    /// count (an exact scan may list them; candidate lists never do).
    pub fn retrieve(
        &self,
        scoring: Scoring,
        legless: bool,
        question: &Question,
        k: usize,
        read_at: Time,
    ) -> Retrieval {
        let upper: f64 = question
            .terms
            .iter()
            .map(|term| self.idf(*term) * 2.2)
            .sum();
        let mut scored: Vec<Member> = Vec::new();
        for (chunk, row) in &self.rows {
            let cos = match (&question.vector, &row.vector) {
                (Some(a), Some(b)) => Some(
                    a.iter()
                        .zip(b.iter())
                        .map(|(x, y)| f64::from(*x) * f64::from(*y))
                        .sum(),
                ),
                _ => None,
            };
            let bm25 = self.bm25(question, row);
            let score = match scoring {
                Scoring::Vector => match cos {
                    Some(cos) => cos,
                    None => continue,
                },
                Scoring::Keyword if bm25 > 0.0 => bm25,
                Scoring::Keyword => continue,
                _ if cos.is_none() && bm25 == 0.0 && !legless => continue,
                Scoring::Rrf => 0.0,
                Scoring::Convex { weight } => {
                    let keyword = if upper > 0.0 { bm25 / upper } else { 0.0 };
                    cos.map_or(0.0, |cos: f64| weight * (1.0 + cos) / 2.0)
                        + (1.0 - weight) * keyword
                }
            };
            let (key, version) = (row.key.clone(), row.version);
            scored.push(Member {
                chunk: *chunk,
                key,
                version,
                score,
                cos,
                bm25,
            });
        }
        if scoring == Scoring::Rrf {
            rank_legs(&mut scored);
        }
        scored.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        let best_outsider = scored.get(k).map(|member| member.score);
        scored.truncate(k);
        let terms: BTreeSet<u64> = question.terms.iter().copied().collect();
        let df = |term: u64| self.df.get(&term).copied().unwrap_or(0) as u64;
        Retrieval {
            read_at,
            list: scored,
            k,
            best_outsider,
            statistics: Statistics {
                chunks: self.chunks as u64,
                length: self.length as u64,
                df: terms.into_iter().map(|term| (term, df(term))).collect(),
            },
        }
    }
}

fn rank_legs(scored: &mut [Member]) {
    for leg in 0..2 {
        let of = |member: &Member| match leg {
            0 => member.cos,
            _ => (member.bm25 > 0.0).then_some(member.bm25),
        };
        let mut order: Vec<usize> = (0..scored.len())
            .filter(|i| of(&scored[*i]).is_some())
            .collect();
        order.sort_by(|a, b| {
            let (a, b) = (&scored[*a], &scored[*b]);
            of(b)
                .partial_cmp(&of(a))
                .expect("finite")
                .then(a.chunk.cmp(&b.chunk))
        });
        for (rank, at) in order.into_iter().enumerate() {
            scored[at].score += 1.0 / (61.0 + rank as f64);
        }
    }
}
