//! All watches of a shard, laid out so that one changed chunk is one linear scan.
//!
//! ```text
//! vectors  [slot × dimensions] f32      one dot product a slot
//! hot      [slot] τ − ε, ρ, drift box   compared in place; the cold Watch is touched only when near
//! postings term → (slot, weight)        keyword parts are summed into `keyword[slot]`
//! members  chunk → slots                departures, new versions, late vectors
//! ```
//!
//! A watch is *armed* while it is alive: only armed ones stand in vectors' scan and in postings. A
//! suspect keeps its seats (a departed member still kills it) and its slot.
//!
//! Cost of an arrival: slots × dimensions multiply-adds (10,000 × 384 in well under a millisecond)
//! plus the postings of its terms. Cost of a tick without arrivals: four comparisons a slot.
//!
//! Invariant: results depend on slots only through their watches, and are reported in the order
//! of lease ids, so that slot numbers (which differ by sharding) never show.

use std::collections::{BTreeMap, HashMap};

use engine::model::{ChunkId, Time};

use super::ring::{Net, NetStatistics};
use super::score::{dot, saturated};
use super::watch::{Arrival, Box2, Frozen, Legs, Running, Watch};
use super::{Cause, ChunkChange, Death, DocumentAt, LeaseId, Retrieval, Scoring, StatisticsDelta};

/// What a tick made of one watch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Suspect,
    Dead(Death),
}

/// What the scan reads of a slot.
#[derive(Debug, Clone, Copy)]
struct Hot {
    /// τ − ε: at or above it a row is near. −∞ when the list is open.
    near: f64,
    rho: f64,
    chunks_base: i64,
    length_base: i64,
    proved: Box2,
    has_vector: bool,
    is_armed: bool,
}

const UNARMED: Hot = Hot {
    near: f64::INFINITY,
    rho: f64::INFINITY,
    chunks_base: 0,
    length_base: 0,
    proved: Box2::ANYWHERE,
    has_vector: false,
    is_armed: false,
};

#[derive(Debug, Clone, Copy)]
struct Posting {
    slot: usize,
    weight: f64,
    inverse_average: f64,
}

/// A term that some armed watch asks for.
#[derive(Debug, Default)]
struct TermRow {
    /// Σ of its df's deltas since this row was made.
    df: i64,
    postings: Vec<Posting>,
}

/// Running sums of the statistics' deltas.
#[derive(Debug, Default)]
struct Sums {
    chunks: i64,
    length: i64,
    terms: HashMap<u64, TermRow>,
}

impl Running for Sums {
    fn totals(&self) -> (i64, i64) {
        (self.chunks, self.length)
    }
    fn df(&self, term: u64) -> i64 {
        self.terms.get(&term).map_or(0, |row| row.df)
    }
}

#[derive(Debug)]
pub(super) struct Watches {
    scoring: Scoring,
    dimensions: usize,
    epsilon: f64,
    slots: Vec<Option<Watch>>,
    free: Vec<usize>,
    by_lease: HashMap<LeaseId, usize>,
    vectors: Vec<f32>,
    hot: Vec<Hot>,
    sums: Sums,
    members: HashMap<ChunkId, Vec<usize>>,
    armed: usize,
    /// Scratch of one arrival: keyword parts by slot, and which of them are not 0.
    keyword: Vec<f64>,
    touched: Vec<usize>,
}

impl Watches {
    pub(super) fn new(scoring: Scoring, dimensions: usize, epsilon: f64) -> Self {
        Watches {
            scoring,
            dimensions: if scoring.has_vectors() { dimensions } else { 0 },
            epsilon,
            slots: Vec::new(),
            free: Vec::new(),
            by_lease: HashMap::new(),
            vectors: Vec::new(),
            hot: Vec::new(),
            sums: Sums::default(),
            members: HashMap::new(),
            armed: 0,
            keyword: Vec::new(),
            touched: Vec::new(),
        }
    }

    pub(super) fn get(&self, lease: LeaseId) -> Option<&Watch> {
        self.slots[*self.by_lease.get(&lease)?].as_ref()
    }

    pub(super) fn get_mut(&mut self, lease: LeaseId) -> Option<&mut Watch> {
        self.slots[*self.by_lease.get(&lease)?].as_mut()
    }

    pub(super) fn leases(&self) -> Vec<LeaseId> {
        let mut leases: Vec<_> = self.by_lease.keys().copied().collect();
        leases.sort_unstable();
        leases
    }

    /// Suspects, ordered by lease.
    pub(super) fn suspects(&self) -> impl Iterator<Item = &Watch> {
        let mut suspects: Vec<&Watch> = self
            .slots
            .iter()
            .flatten()
            .filter(|watch| watch.is_suspect)
            .collect();
        suspects.sort_unstable_by_key(|watch| watch.lease);
        suspects.into_iter()
    }

    /// Adds a watch, unarmed. Its lease must be new.
    pub(super) fn insert(&mut self, watch: Watch) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.hot.push(UNARMED);
            self.keyword.push(0.0);
            self.vectors.resize(self.slots.len() * self.dimensions, 0.0);
            self.slots.len() - 1
        });
        for seat in &watch.seats {
            self.members.entry(seat.chunk).or_default().push(slot);
        }
        let vector = &mut self.vectors[slot * self.dimensions..(slot + 1) * self.dimensions];
        match &watch.question.vector {
            Some(question) if question.len() == vector.len() => vector.copy_from_slice(question),
            _ => vector.fill(0.0),
        }
        self.by_lease.insert(watch.lease, slot);
        self.slots[slot] = Some(watch);
    }

    /// Takes a watch out.
    pub(super) fn remove(&mut self, lease: LeaseId) -> Option<Watch> {
        let slot = self.by_lease.remove(&lease)?;
        self.disarm(slot);
        let watch = self.slots[slot].take()?;
        for seat in &watch.seats {
            if let Some(slots) = self.members.get_mut(&seat.chunk) {
                slots.retain(|known| *known != slot);
                if slots.is_empty() {
                    self.members.remove(&seat.chunk);
                }
            }
        }
        self.free.push(slot);
        Some(watch)
    }

    /// Makes a watch suspect: its numbers are void until the next [`Watches::admit`].
    pub(super) fn suspect(&mut self, lease: LeaseId) {
        let Some(&slot) = self.by_lease.get(&lease) else {
            return;
        };
        self.disarm(slot);
        if let Some(watch) = &mut self.slots[slot] {
            watch.is_suspect = true;
        }
    }

    fn disarm(&mut self, slot: usize) {
        if !self.hot[slot].is_armed {
            return;
        }
        self.hot[slot] = UNARMED;
        self.armed -= 1;
        let Some(watch) = &self.slots[slot] else {
            return;
        };
        for term in &watch.frozen.terms {
            if let Some(row) = self.sums.terms.get_mut(&term.hash) {
                row.postings.retain(|posting| posting.slot != slot);
                if row.postings.is_empty() {
                    self.sums.terms.remove(&term.hash);
                }
            }
        }
    }

    /// Freezes a retrieval and tests it against everything since: a lease's admission, and a
    /// recheck's. The watch is armed when the outcome is `None`.
    pub(super) fn admit(
        &mut self,
        lease: LeaseId,
        retrieval: &Retrieval,
        statistics: &NetStatistics,
        net: &BTreeMap<ChunkId, Net<'_>>,
    ) -> Option<Verdict> {
        let slot = *self.by_lease.get(&lease)?;
        self.disarm(slot);
        let watch = self.slots[slot].as_mut()?;
        watch.is_suspect = true;
        // Term rows first: bases are relative to their running sums.
        watch.frozen = Frozen::new(
            self.scoring,
            &watch.question,
            retrieval,
            statistics,
            &self.sums,
        );

        let mut departed = Departed::default();
        let mut is_near = self.scoring == Scoring::Rrf && (!net.is_empty() || statistics.moved());
        for row in net.values() {
            if watch.is_member(row.last.chunk) {
                depart(&mut departed, watch, row);
                if let Some(arrival) = row.arrival
                    && row.gone().is_none()
                {
                    is_near |= !watch.rescore(self.scoring, arrival);
                }
            }
        }
        if let Some(death) = departed.death() {
            return Some(Verdict::Dead(death));
        }
        let mut entered: Option<(f64, DocumentAt)> = None;
        for row in net.values() {
            let Some(arrival) = row.arrival else { continue };
            if watch.is_member(arrival.chunk) {
                continue;
            }
            let frozen = &watch.frozen;
            let legs = frozen.legs(self.scoring, &watch.question, arrival);
            let drift = || frozen.drift(self.scoring, &self.sums);
            match frozen.place(self.scoring, self.epsilon, legs, drift) {
                Some(Arrival::Entered(score)) => better(&mut entered, score, row.last),
                Some(Arrival::Near(_)) => is_near = true,
                Some(Arrival::Outside(score)) => {
                    watch.frozen.rho = watch.frozen.rho.max(score);
                }
                None => {}
            }
        }
        if let Some((_, by)) = entered {
            return Some(Verdict::Dead(Death {
                cause: Cause::Entered,
                by: vec![by],
            }));
        }
        let proved = watch.frozen.measure(self.scoring, self.epsilon, &self.sums);
        match proved {
            Some(proved) if !is_near => self.arm(slot, proved),
            _ => return Some(Verdict::Suspect),
        }
        None
    }

    fn arm(&mut self, slot: usize, proved: Box2) {
        let Some(watch) = &mut self.slots[slot] else {
            return;
        };
        watch.is_suspect = false;
        let frozen = &watch.frozen;
        for term in &frozen.terms {
            let weight = frozen.weight(term);
            let inverse_average = frozen.inverse_average;
            let row = self.sums.terms.entry(term.hash).or_default();
            row.postings.push(Posting {
                slot,
                weight,
                inverse_average,
            });
        }
        let has_vector = self.dimensions > 0
            && watch
                .question
                .vector
                .as_ref()
                .is_some_and(|v| v.len() == self.dimensions);
        self.hot[slot] = Hot {
            has_vector,
            is_armed: true,
            ..UNARMED
        };
        self.armed += 1;
        self.refresh(slot, proved);
    }

    fn refresh(&mut self, slot: usize, proved: Box2) {
        let Some(watch) = &self.slots[slot] else {
            return;
        };
        let frozen = &watch.frozen;
        let hot = &mut self.hot[slot];
        hot.near = if frozen.is_open {
            f64::NEG_INFINITY
        } else {
            frozen.tau - self.epsilon
        };
        hot.rho = frozen.rho;
        (hot.chunks_base, hot.length_base) = (frozen.chunks_base, frozen.length_base);
        hot.proved = proved;
    }

    /// Applies one tick to every watch. Dead watches are reported, not removed.
    ///
    /// `work_max`: arrivals × armed watches beyond which all armed ones are suspended instead.
    pub(super) fn observe(
        &mut self,
        net: &BTreeMap<ChunkId, Net<'_>>,
        statistics: &StatisticsDelta,
        work_max: usize,
    ) -> BTreeMap<LeaseId, Verdict> {
        let mut departed: HashMap<usize, Departed> = HashMap::new();
        let mut near: Vec<usize> = Vec::new();
        let mut dirty: Vec<usize> = Vec::new();
        for (chunk, row) in net {
            let Some(slots) = self.members.get(chunk) else {
                continue;
            };
            for &slot in slots {
                let Some(watch) = &mut self.slots[slot] else {
                    continue;
                };
                if row.gone().is_some() {
                    depart(departed.entry(slot).or_default(), watch, row);
                    continue;
                }
                depart(&mut Departed::default(), watch, row);
                if let Some(arrival) = row.arrival
                    && self.hot[slot].is_armed
                {
                    if watch.rescore(self.scoring, arrival) {
                        self.hot[slot].near = watch.frozen.tau - self.epsilon;
                        dirty.push(slot);
                    } else {
                        near.push(slot);
                    }
                }
            }
        }
        self.move_statistics(statistics, &mut dirty);

        let mut entered: HashMap<usize, (f64, DocumentAt)> = HashMap::new();
        let arrivals: Vec<&ChunkChange> = net.values().filter_map(|row| row.arrival).collect();
        let is_disturbed = !net.is_empty() || !statistics.is_empty();
        if arrivals.len().saturating_mul(self.armed) > work_max
            || self.scoring == Scoring::Rrf && is_disturbed
        {
            near.extend((0..self.hot.len()).filter(|slot| self.hot[*slot].is_armed));
        } else {
            for arrival in arrivals {
                self.scan(arrival, &mut near, &mut dirty, &mut entered);
            }
            self.check_drift(statistics, &mut dirty, &mut near);
        }
        self.verdicts(departed, entered, near)
    }

    fn move_statistics(&mut self, statistics: &StatisticsDelta, dirty: &mut Vec<usize>) {
        self.sums.chunks += statistics.chunks;
        self.sums.length += statistics.length;
        for (term, delta) in &statistics.df {
            if let Some(row) = self.sums.terms.get_mut(term)
                && *delta != 0
            {
                row.df += delta;
                dirty.extend(row.postings.iter().map(|posting| posting.slot));
            }
        }
    }

    /// Scores one arrival for every armed watch.
    fn scan(
        &mut self,
        arrival: &ChunkChange,
        near: &mut Vec<usize>,
        dirty: &mut Vec<usize>,
        entered: &mut HashMap<usize, (f64, DocumentAt)>,
    ) {
        for (term, tf) in arrival.terms.iter() {
            let Some(row) = self.sums.terms.get(term) else {
                continue;
            };
            for posting in &row.postings {
                if self.keyword[posting.slot] == 0.0 {
                    self.touched.push(posting.slot);
                }
                self.keyword[posting.slot] +=
                    posting.weight * saturated(*tf, arrival.length, posting.inverse_average);
            }
        }
        let vector = arrival
            .vector
            .as_deref()
            .filter(|v| v.len() == self.dimensions);
        for slot in 0..self.hot.len() {
            let hot = &self.hot[slot];
            if !hot.is_armed {
                continue;
            }
            let cos = match vector {
                Some(vector) if hot.has_vector => {
                    let from = slot * self.dimensions;
                    Some(f64::from(dot(
                        &self.vectors[from..from + self.dimensions],
                        vector,
                    )))
                }
                _ => None,
            };
            let legs = Legs {
                cos,
                keyword: self.keyword[slot],
            };
            let Some(score) = self.scoring.fuse(legs.cos, legs.keyword) else {
                continue;
            };
            if score < hot.near && score <= hot.rho {
                continue;
            }
            let Some(watch) = &mut self.slots[slot] else {
                continue;
            };
            if watch.is_member(arrival.chunk) {
                continue;
            }
            let drift = || watch.frozen.drift(self.scoring, &self.sums);
            match watch.frozen.place(self.scoring, self.epsilon, legs, drift) {
                Some(Arrival::Entered(score)) => {
                    let mut best = entered.remove(&slot);
                    better(&mut best, score, arrival);
                    entered.extend(best.map(|best| (slot, best)));
                }
                Some(Arrival::Near(_)) => near.push(slot),
                Some(Arrival::Outside(score)) if score > watch.frozen.rho => {
                    watch.frozen.rho = score;
                    self.hot[slot].rho = score;
                    dirty.push(slot);
                }
                _ => {}
            }
        }
        for slot in self.touched.drain(..) {
            self.keyword[slot] = 0.0;
        }
    }

    /// Measures again whatever left its box, or has new margins or document frequencies.
    fn check_drift(
        &mut self,
        statistics: &StatisticsDelta,
        dirty: &mut Vec<usize>,
        near: &mut Vec<usize>,
    ) {
        if self.scoring.drifts() && (statistics.chunks != 0 || statistics.length != 0) {
            for (slot, hot) in self.hot.iter().enumerate() {
                if !hot.is_armed {
                    continue;
                }
                let chunks = self.sums.chunks + hot.chunks_base;
                let length = self.sums.length + hot.length_base;
                let average = super::watch::inverse_average(chunks, length);
                if !hot.proved.holds(chunks.max(0) as f64 + 1.0, average) {
                    dirty.push(slot);
                }
            }
        }
        dirty.sort_unstable();
        dirty.dedup();
        for &slot in dirty.iter() {
            let Some(watch) = &self.slots[slot] else {
                continue;
            };
            if !self.hot[slot].is_armed {
                continue;
            }
            match watch.frozen.measure(self.scoring, self.epsilon, &self.sums) {
                Some(proved) => self.refresh(slot, proved),
                None => near.push(slot),
            }
        }
    }

    fn verdicts(
        &mut self,
        departed: HashMap<usize, Departed>,
        entered: HashMap<usize, (f64, DocumentAt)>,
        near: Vec<usize>,
    ) -> BTreeMap<LeaseId, Verdict> {
        let mut verdicts = BTreeMap::new();
        let lease = |slot: usize| self.slots[slot].as_ref().map(|watch| watch.lease);
        for slot in near {
            if self.hot[slot].is_armed {
                verdicts.extend(lease(slot).map(|lease| (lease, Verdict::Suspect)));
            }
        }
        for (slot, (_, by)) in entered {
            let death = Death {
                cause: Cause::Entered,
                by: vec![by],
            };
            verdicts.extend(lease(slot).map(|lease| (lease, Verdict::Dead(death))));
        }
        for (slot, departed) in departed {
            if let Some(death) = departed.death() {
                verdicts.extend(lease(slot).map(|lease| (lease, Verdict::Dead(death))));
            }
        }
        for (lease, verdict) in &verdicts {
            if *verdict == Verdict::Suspect {
                self.suspect(*lease);
            }
        }
        verdicts
    }

    /// Forgets versions before `since`.
    pub(super) fn compact(&mut self, since: Time) {
        for seat in self
            .slots
            .iter_mut()
            .flatten()
            .flat_map(|watch| &mut watch.seats)
        {
            seat.compact(since);
        }
    }
}

/// The members that a watch lost in one tick.
#[derive(Debug, Default)]
struct Departed {
    by: Vec<DocumentAt>,
    is_deleted: bool,
}

impl Departed {
    fn death(mut self) -> Option<Death> {
        if self.by.is_empty() {
            return None;
        }
        self.by.sort_unstable();
        self.by.dedup();
        let cause = if self.is_deleted {
            Cause::Deleted
        } else {
            Cause::Changed
        };
        Some(Death { cause, by: self.by })
    }
}

/// Notes a member's departure, or its new versions.
fn depart(departed: &mut Departed, watch: &mut Watch, row: &Net<'_>) {
    if let Some(document_deleted) = row.gone() {
        departed.by.push(DocumentAt {
            key: row.last.key.clone(),
            version: row.last.version,
        });
        departed.is_deleted |= document_deleted;
        return;
    }
    for seat in watch
        .seats
        .iter_mut()
        .filter(|seat| seat.chunk == row.last.chunk)
    {
        for (at, version) in &row.versions {
            seat.reversion(*at, *version);
        }
    }
}

/// Keeps the overtaker with the highest score; the lesser chunk id is met first and stays on ties.
fn better(best: &mut Option<(f64, DocumentAt)>, score: f64, row: &ChunkChange) {
    if best.as_ref().is_none_or(|(known, _)| score > *known) {
        *best = Some((
            score,
            DocumentAt {
                key: row.key.clone(),
                version: row.version,
            },
        ));
    }
}
