//! One watch: what a question saw, and whether a change can matter to it.
//!
//! Frozen at S0: the idf of its terms, the average length, τ (score of the k-th member), ρ (score
//! of the best outsider known). A row that arrives is scored under S0:
//!
//! ```text
//!            ρ                    τ − ε   τ      τ + 2ε + drift
//! ───────────┼──────────────────────┼─────┼──────────┼────────────▶ f_S0(x)
//!   harmless │ raises ρ             │    suspect     │ has entered
//! ```
//!
//! and the set is unchanged while lead(τ, ρ) > drift(S0 → now). Invariant: ρ is an upper bound of
//! f_S0 over all visible rows outside the list, τ a lower bound over those inside.

use std::collections::HashMap;
use std::sync::Arc;

use engine::model::{ChunkId, Key, Time};

use super::score::{SATURATION, dot, idf, saturated};
use super::{ChunkChange, EntryId, LeaseId, Question, Retrieval, Scoring};

/// A member's place in a watch.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub chunk: ChunkId,
    pub key: Key,
    /// f_S0.
    pub score: f64,
    /// The document's versions: (from, version), ascending.
    pub versions: Vec<(Time, u64)>,
}

impl Seat {
    /// The document's version at `at`.
    pub(super) fn version_at(&self, at: Time) -> u64 {
        let after = self.versions.partition_point(|(from, _)| *from <= at);
        self.versions[after.saturating_sub(1)].1
    }

    /// Adds a version; equal ones add nothing.
    pub(super) fn reversion(&mut self, at: Time, version: u64) {
        match self.versions.last() {
            Some((from, known)) if *known == version || *from > at => {}
            _ => self.versions.push((at, version)),
        }
    }

    /// Forgets versions that no reader at or after `since` can ask for.
    pub(super) fn compact(&mut self, since: Time) {
        let keep = self
            .versions
            .partition_point(|(from, _)| *from <= since)
            .saturating_sub(1);
        self.versions.drain(..keep);
    }
}

/// A distinct term of the question.
#[derive(Debug, Clone, Copy)]
pub(super) struct WatchedTerm {
    pub hash: u64,
    /// How often the question says it.
    pub count: f64,
    /// At S0.
    pub idf: f64,
    /// df now = this + the term's running sum in the table.
    pub df_base: i64,
}

/// The statistics now, as running sums since the shard began.
pub(super) trait Running {
    /// (chunks, length).
    fn totals(&self) -> (i64, i64);
    /// df of a watched term.
    fn df(&self, term: u64) -> i64;
}

/// What is frozen at S0. Replaced as a whole by a recheck.
#[derive(Debug, Clone, Default)]
pub(super) struct Frozen {
    pub terms: Vec<WatchedTerm>,
    /// Σ n · idf · 2.2 under convex scoring, 1 under keyword scoring: what keyword parts are
    /// divided by.
    pub scale: f64,
    pub inverse_average: f64,
    pub chunks_base: i64,
    pub length_base: i64,
    pub tau: f64,
    pub rho: f64,
    /// Fewer than k rows were visible: any visible arrival enters.
    pub is_open: bool,
}

/// Where N + 1 and the average length may move, with df as it is, before the drift must be
/// measured again. Inclusive; empty until measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Box2 {
    pub chunks: (f64, f64),
    pub average: (f64, f64),
}

impl Box2 {
    pub(super) const ANYWHERE: Box2 = Box2 {
        chunks: (f64::NEG_INFINITY, f64::INFINITY),
        average: (f64::NEG_INFINITY, f64::INFINITY),
    };

    pub(super) fn holds(&self, chunks: f64, average: f64) -> bool {
        self.chunks.0 <= chunks
            && chunks <= self.chunks.1
            && self.average.0 <= average
            && average <= self.average.1
    }
}

#[derive(Debug)]
pub(super) struct Watch {
    pub lease: LeaseId,
    pub entry: Option<EntryId>,
    pub question: Arc<Question>,
    pub seats: Vec<Seat>,
    pub frozen: Frozen,
    pub is_suspect: bool,
}

/// What one arrival means for one watch.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Arrival {
    /// Stays outside; its f_S0.
    Outside(f64),
    /// Too near to tell.
    Near(f64),
    /// It is in the list now.
    Entered(f64),
}

/// A row's part in the legs of one question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Legs {
    pub cos: Option<f64>,
    /// Already divided by the scale.
    pub keyword: f64,
}

impl Frozen {
    /// Freezes a retrieval. `net_*`: the statistics' movement after `read_at`; `running`: the sums
    /// now, so that base + running = S0 + net.
    pub(super) fn new(
        scoring: Scoring,
        question: &Question,
        retrieval: &Retrieval,
        net: &super::ring::NetStatistics,
        running: &impl Running,
    ) -> Frozen {
        let s0 = &retrieval.statistics;
        let mut terms: Vec<WatchedTerm> = Vec::new();
        if scoring.has_keywords() {
            for &hash in &question.terms {
                if let Some(term) = terms.iter_mut().find(|term| term.hash == hash) {
                    term.count += 1.0;
                    continue;
                }
                let df = s0.df(hash);
                let moved = net.df.get(&hash).copied().unwrap_or(0);
                terms.push(WatchedTerm {
                    hash,
                    count: 1.0,
                    idf: idf(s0.chunks as f64, df as f64),
                    df_base: df as i64 + moved - running.df(hash),
                });
            }
        }
        let upper: f64 = terms
            .iter()
            .map(|term| term.count * term.idf * SATURATION)
            .sum();
        let (chunks, length) = running.totals();
        let tau = retrieval
            .list
            .iter()
            .map(|member| member.score)
            .fold(f64::INFINITY, f64::min);
        Frozen {
            scale: if scoring == Scoring::Keyword {
                1.0
            } else {
                upper
            },
            inverse_average: inverse_average(s0.chunks as i64, s0.length as i64),
            chunks_base: s0.chunks as i64 + net.chunks - chunks,
            length_base: s0.length as i64 + net.length - length,
            tau,
            rho: retrieval.best_outsider.unwrap_or(f64::NEG_INFINITY),
            is_open: retrieval.list.len() < retrieval.k,
            terms,
        }
    }

    /// How far the statistics have drifted from S0, on the scale of [`Scoring::lead`].
    pub(super) fn drift(&self, scoring: Scoring, running: &impl Running) -> f64 {
        if self.terms.is_empty() || !scoring.drifts() {
            return 0.0;
        }
        let (chunks, length) = running.totals();
        let (chunks, length) = (chunks + self.chunks_base, length + self.length_base);
        let inverse = inverse_average(chunks, length);
        let average = if inverse == self.inverse_average {
            0.0
        } else {
            // Infinite when there was or is no text at all: nothing can be said.
            (self.inverse_average / inverse).ln().abs()
        };
        let chunks = chunks.max(0) as f64;
        let terms = self.terms.iter().map(|term| {
            let df = (term.df_base + running.df(term.hash)).max(0) as f64;
            (term.count, term.idf, idf(chunks, df))
        });
        scoring.drift(terms, average)
    }

    /// Whether the set is proved unchanged, and within which box it stays proved without another
    /// look as long as no df of its terms moves.
    pub(super) fn measure(
        &self,
        scoring: Scoring,
        epsilon: f64,
        running: &impl Running,
    ) -> Option<Box2> {
        // All visible rows are in the list: no order among them matters.
        // Ranks have no margin to measure: whatever moves makes them suspect at once.
        if self.is_open
            || self.terms.is_empty()
            || matches!(scoring, Scoring::Vector | Scoring::Rrf)
        {
            return Some(Box2::ANYWHERE);
        }
        let drift = self.drift(scoring, running);
        let slack = scoring.lead(self.tau, self.rho, epsilon) - drift;
        let (chunks, length) = running.totals();
        let (chunks, length) = (chunks + self.chunks_base, length + self.length_base);
        let average = inverse_average(chunks, length);
        let next = chunks.max(0) as f64 + 1.0;
        let running_idf = |term: &WatchedTerm| {
            let df = term.df_base + running.df(term.hash);
            idf(next - 1.0, df.max(0) as f64)
        };
        let is_as_frozen = average == self.inverse_average
            && self.terms.iter().all(|term| running_idf(term) == term.idf);
        if is_as_frozen && slack <= 0.0 {
            // A tie under the very statistics that decided it. (Under others without a drift, all idf
            // moved by one factor, rounding may turn it.)
            return Some(Box2 {
                chunks: (next, next),
                average: (average, average),
            });
        }
        if slack.is_nan() || slack <= 0.0 {
            return None;
        }
        let slack = match scoring {
            Scoring::Convex { weight } if weight < 1.0 => slack / (1.0 - weight),
            _ => slack,
        };
        // With df fixed, y = Δ ln(N + 1) moves every idf by y, each ln r in the same direction by
        // at most 2|y|/idf (for |y| ≤ idf/2): osc by at most that. Half of the slack each.
        let least = self
            .terms
            .iter()
            .map(running_idf)
            .fold(f64::INFINITY, f64::min);
        let (y, delta) = ((slack / 4.0).min(0.49) * least * 0.999, slack / 2.0 * 0.999);
        Some(Box2 {
            chunks: (next * (-y).exp(), next * y.exp()),
            average: (average * (-delta).exp(), average * delta.exp()),
        })
    }

    /// f_S0 parts of a row, computed for this watch alone.
    pub(super) fn legs(&self, scoring: Scoring, question: &Question, row: &ChunkChange) -> Legs {
        let cos = match (&question.vector, &row.vector) {
            (Some(a), Some(b)) if scoring.has_vectors() && a.len() == b.len() => {
                Some(f64::from(dot(a, b)))
            }
            _ => None,
        };
        let mut keyword = 0.0;
        for term in &self.terms {
            if let Some((_, tf)) = row.terms.iter().find(|(hash, _)| *hash == term.hash) {
                keyword += self.weight(term) * saturated(*tf, row.length, self.inverse_average);
            }
        }
        Legs { cos, keyword }
    }

    /// What multiplies u_t(x) in the keyword part.
    pub(super) fn weight(&self, term: &WatchedTerm) -> f64 {
        term.count * term.idf * SATURATION / self.scale
    }

    /// Places an arriving row that is not a member. `drift` is asked only when it matters.
    pub(super) fn place(
        &self,
        scoring: Scoring,
        epsilon: f64,
        legs: Legs,
        drift: impl FnOnce() -> f64,
    ) -> Option<Arrival> {
        let score = scoring.fuse(legs.cos, legs.keyword)?;
        if self.is_open {
            // A row in no leg is in no candidate list, yet an exact scan may count it.
            let is_in_a_leg = legs.cos.is_some() || legs.keyword > 0.0;
            return Some(if is_in_a_leg && scoring != Scoring::Rrf {
                Arrival::Entered(score)
            } else {
                Arrival::Near(score)
            });
        }
        if scoring == Scoring::Rrf {
            return Some(Arrival::Near(score));
        }
        if score < self.tau - epsilon {
            return Some(Arrival::Outside(score));
        }
        let lead = scoring.lead(score, self.tau, epsilon);
        Some(if lead > 0.0 && lead > drift() {
            Arrival::Entered(score)
        } else {
            Arrival::Near(score)
        })
    }
}

impl Watch {
    /// A member gained a leg: its score under S0 changes, and τ with it. False when it has lost
    /// its only leg, and only a new retrieval can tell.
    #[must_use]
    pub(super) fn rescore(&mut self, scoring: Scoring, row: &ChunkChange) -> bool {
        let legs = self.frozen.legs(scoring, &self.question, row);
        let Some(score) = scoring.fuse(legs.cos, legs.keyword) else {
            return false;
        };
        for seat in &mut self.seats {
            if seat.chunk == row.chunk {
                seat.score = score;
            }
        }
        self.frozen.tau = self
            .seats
            .iter()
            .map(|seat| seat.score)
            .fold(f64::INFINITY, f64::min);
        true
    }

    pub(super) fn is_member(&self, chunk: ChunkId) -> bool {
        self.seats.iter().any(|seat| seat.chunk == chunk)
    }

    /// Takes over a list: seats with their scores; known versions are kept.
    pub(super) fn seat(&mut self, retrieval: &Retrieval) {
        let mut known: HashMap<ChunkId, Vec<(Time, u64)>> = self
            .seats
            .drain(..)
            .map(|seat| (seat.chunk, seat.versions))
            .collect();
        self.seats = retrieval
            .list
            .iter()
            .map(|member| Seat {
                chunk: member.chunk,
                key: member.key.clone(),
                score: member.score,
                versions: known
                    .remove(&member.chunk)
                    .unwrap_or_else(|| vec![(retrieval.read_at, member.version)]),
            })
            .collect();
    }
}

/// 1/avg; 0 while there is no text.
pub(super) fn inverse_average(chunks: i64, length: i64) -> f64 {
    if chunks > 0 && length > 0 {
        chunks as f64 / length as f64
    } else {
        0.0
    }
}
