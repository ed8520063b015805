//! The shard: one worker's part of one index, and its way through time.
//!
//! `apply_*` come in time order and make everything visible at once; `maintain` and `compact` change
//! nothing that a reader at `since ≤ T ≤ now` can see.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use engine::model::{ChunkId, ChunkPiece, ContentHash, Key, Row, Time};
use serde::{Deserialize, Serialize};

use super::builder::BuilderHandle;
use super::change::{ChunkFact, LegChange, StatisticsDelta};
use super::documents::{Documents, Version};
use super::kernel::Quantization;
use super::keyword::{KeywordIndex, Sums};
use super::ledger::Ledger;
use super::slots::{Hot, NEVER, NONE, NOWHERE, Slots};
use super::vectors::{VectorConfig, VectorLeg};
use super::{Analyzer, Legs, Statistics, Term};

/// What a shard is made of. Equal in all shards of an index.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Length of the vectors; `None` for a keyword index.
    pub dimensions: Option<usize>,
    /// Whether there is a keyword leg.
    pub keyword: bool,
    /// How text becomes terms.
    pub analyzer: Analyzer,
    /// How vectors are stored.
    pub quantization: Quantization,
    /// Vectors that are scanned before a graph is built over them; [`engine::limits::HEAD_VECTORS_MAX`].
    pub head_max: usize,
    /// Where graphs are built.
    pub builder: BuilderHandle,
}

impl ShardConfig {
    /// The legs of the index.
    pub fn legs(&self) -> Legs {
        Legs {
            vector: self.dimensions.is_some(),
            keyword: self.keyword,
        }
    }
}

/// One version of a document, as the chunker cut it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentState {
    /// The source's version.
    pub version: u64,
    /// The INCLUDEd columns, packed: what filters and replies read.
    pub attributes: Row,
    /// The indexed column's text.
    pub text: Arc<str>,
    /// Its chunks in text order.
    pub chunks: Arc<[ShardChunk]>,
}

impl DocumentState {
    /// The text of a piece; empty when the range does not fit the text.
    pub fn text_of(&self, piece: &ChunkPiece) -> &str {
        let (start, end) = piece.range;
        self.text.get(start as usize..end as usize).unwrap_or("")
    }
}

/// A chunk of a document version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardChunk {
    /// Identity; unchanged while the chunk's content is.
    pub id: ChunkId,
    /// Where it stands; `piece.content` joins it to its vector.
    pub piece: ChunkPiece,
}

/// A document as of a time, for `GET /v1/documents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentView {
    /// Version, attributes, text, pieces.
    pub state: Arc<DocumentState>,
    /// The version's first time.
    pub from: Time,
    /// The chunks that live, in text order. (A blank piece is no chunk.)
    pub chunks: Vec<ChunkView>,
}

/// A live chunk of a [`DocumentView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkView {
    /// Index into `state.chunks`.
    pub ordinal: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Whether it is in the vector leg.
    pub has_vector: bool,
}

/// What one call of [`Shard::maintain`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintenance {
    /// Vectors handed to the builder.
    pub submitted: usize,
    /// Vectors of a generation that was swapped in.
    pub swapped_in: usize,
    /// Slots given back.
    pub released: usize,
    /// Builds that failed in a row; the rows concerned are scanned, and the build is tried again.
    pub failures: u32,
    /// Whether another call now would do more.
    pub has_more: bool,
}

/// Sizes for metrics and `headwater.shards`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardSizes {
    /// Live chunks.
    pub chunks_live: u64,
    /// Chunks that are gone and not yet given back (retention, squeezing).
    pub chunks_dead: u64,
    /// Documents.
    pub documents: u64,
    /// Rows of vectors that are scanned.
    pub head: u64,
    /// Rows of vectors, those without a chunk included.
    pub vectors: u64,
    /// Graphs.
    pub generations: u64,
    /// Distinct terms.
    pub terms: u64,
    /// Vectors refused for their length or norm.
    pub vectors_refused: u64,
    /// Resident bytes of vectors, graphs, postings and tables; texts and attributes excluded.
    pub bytes: u64,
}

/// See the module's documentation.
pub struct Shard {
    pub(super) config: ShardConfig,
    pub(super) slots: Slots,
    pub(super) documents: Documents,
    pub(super) keyword: KeywordIndex,
    pub(super) vectors: Option<VectorLeg>,
    pub(super) ledger: Ledger,
    pub(super) sums: RefCell<Sums>,
    waiting: AHashMap<ContentHash, Vec<u32>>,
    closed_slots: VecDeque<(Time, u32)>,
    closed_versions: VecDeque<(Time, u32)>,
    since: Time,
    now: Time,
    vectors_refused: u64,
    is_observed: bool,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("sizes", &self.sizes())
            .finish_non_exhaustive()
    }
}

/// What one `apply_*` gathers.
struct Tally {
    at: Time,
    statistics: StatisticsDelta,
    changes: Vec<LegChange>,
}

impl Tally {
    fn new(at: Time) -> Self {
        Tally {
            at,
            statistics: StatisticsDelta::default(),
            changes: Vec::new(),
        }
    }

    fn count(&mut self, sign: i64, length: u32, terms: impl Iterator<Item = Term>) {
        self.statistics.chunks += sign;
        self.statistics.length += sign * i64::from(length);
        self.statistics
            .frequencies
            .extend(terms.map(|term| (term, sign)));
    }

    /// Orders the frequencies, adds equals up and drops zeros.
    fn consolidate(&mut self) {
        let frequencies = &mut self.statistics.frequencies;
        frequencies.sort_unstable();
        frequencies.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            if is_same {
                kept.1 += next.1;
            }
            is_same
        });
        frequencies.retain(|(_, change)| *change != 0);
    }
}

impl Shard {
    /// An empty shard, readable from time 0 on.
    pub fn new(config: ShardConfig) -> Self {
        let vectors = config.dimensions.map(|dimensions| {
            VectorLeg::new(VectorConfig {
                dimensions,
                quantization: config.quantization,
                head_max: config.head_max.max(1),
                builder: config.builder.clone(),
            })
        });
        Shard {
            config,
            slots: Slots::default(),
            documents: Documents::default(),
            keyword: KeywordIndex::default(),
            vectors,
            ledger: Ledger::default(),
            sums: RefCell::default(),
            waiting: AHashMap::new(),
            closed_slots: VecDeque::new(),
            closed_versions: VecDeque::new(),
            since: 0,
            now: 0,
            vectors_refused: 0,
            is_observed: true,
        }
    }

    /// What the shard is made of.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    /// Whether `apply_*` reply with changes. Off saves their cost while no cache listens; on by
    /// default.
    pub fn set_observed(&mut self, is_observed: bool) {
        self.is_observed = is_observed;
    }

    /// Replaces the document from `at` on, or deletes it (`None`). Chunks whose ids live on keep
    /// their slots, vectors and postings: no work but a table row. `vectors` answers for facts
    /// bound ≤ `at` only; chunks without an answer wait for [`Shard::apply_vector`].
    ///
    /// `at` never decreases over all `apply_*`; the last state of a document at one `at` wins.
    pub fn apply_document(
        &mut self,
        at: Time,
        key: &Key,
        state: Option<Arc<DocumentState>>,
        vectors: &dyn Fn(ContentHash) -> Option<Arc<[f32]>>,
    ) -> Vec<LegChange> {
        self.step_to(at);
        let number = match (self.documents.find(key), &state) {
            (Some(number), _) => number,
            (None, None) => return Vec::new(),
            (None, Some(_)) => self.documents.find_or_add(key),
        };
        let mut tally = Tally::new(at);
        let document = self.documents.get_mut(number);
        let was_pending = document.waiting > 0;
        let old = document.close(at);
        let mut kept: AHashMap<ChunkId, u32> = AHashMap::new();
        if let Some((_, slots)) = &old {
            self.closed_versions.push_back((at, number));
            let slots = slots.iter().copied().filter(|slot| *slot != NONE);
            kept.extend(slots.map(|slot| (self.slots.chunk(slot), slot)));
        }
        let old_state = old.as_ref().map(|(state, _)| state);
        let slots = state.as_ref().map(|state| {
            self.place_chunks(number, state, old_state, &mut kept, vectors, &mut tally)
        });
        if let Some((old_state, slots)) = &old {
            for slot in slots.iter().filter(|slot| **slot != NONE) {
                if kept.contains_key(&self.slots.chunk(*slot)) {
                    self.retire(*slot, key, old_state, &mut tally);
                }
            }
        }
        if let (Some(state), Some(slots)) = (state, slots) {
            let version = Version {
                from: at,
                to: NEVER,
                state,
                slots,
            };
            self.documents.get_mut(number).versions.push(version);
        }
        let is_pending = self.documents.get(number).waiting > 0;
        self.finish(tally, i64::from(is_pending) - i64::from(was_pending))
    }

    /// Slots of a new version's pieces, in text order; what lives on is taken out of `kept`.
    fn place_chunks(
        &mut self,
        document: u32,
        state: &Arc<DocumentState>,
        old: Option<&Arc<DocumentState>>,
        kept: &mut AHashMap<ChunkId, u32>,
        vectors: &dyn Fn(ContentHash) -> Option<Arc<[f32]>>,
        tally: &mut Tally,
    ) -> Arc<[u32]> {
        let mut seen = AHashSet::with_capacity(state.chunks.len());
        let mut slots = Vec::with_capacity(state.chunks.len());
        let is_changed = |old: &Arc<DocumentState>| {
            old.version != state.version || old.attributes != state.attributes
        };
        for chunk in state.chunks.iter() {
            if !seen.insert(chunk.id) {
                slots.push(NONE);
                continue;
            }
            let slot = match kept.remove(&chunk.id) {
                Some(slot) => {
                    if let Some(old) = old.filter(|old| self.is_observed && is_changed(old)) {
                        let fact = self.fact(slot, state, None);
                        tally.changes.push(LegChange::Reversioned {
                            at: tally.at,
                            fact,
                            previous_attributes: old.attributes.clone(),
                        });
                    }
                    slot
                }
                None => self.add_chunk(document, state, chunk, vectors, tally),
            };
            slots.push(slot);
        }
        slots.into()
    }

    /// Takes a slot for a new chunk; `NONE` for a blank one.
    fn add_chunk(
        &mut self,
        document: u32,
        state: &Arc<DocumentState>,
        chunk: &ShardChunk,
        vectors: &dyn Fn(ContentHash) -> Option<Arc<[f32]>>,
        tally: &mut Tally,
    ) -> u32 {
        let text = state.text_of(&chunk.piece);
        let (terms, length) = match self.config.keyword {
            true if text.trim().is_empty() => return NONE,
            true => self.config.analyzer.count(text),
            false => (Vec::new(), 0),
        };
        let hot = Hot {
            from: tally.at,
            to: NEVER,
            length,
            document,
        };
        let slot = self.slots.take(hot, chunk.id, chunk.piece.content);
        let forward = self.keyword.add(slot, &terms);
        self.slots.set_terms(slot, forward);
        tally.count(1, length, terms.iter().map(|(term, _)| *term));
        let mut legs = Legs {
            vector: false,
            keyword: self.config.keyword,
        };
        let mut known = None;
        if self.vectors.is_some() {
            known = vectors(chunk.piece.content);
            legs.vector = known
                .as_ref()
                .is_some_and(|vector| self.link_vector(slot, vector, tally.at));
            if !legs.vector {
                known = None;
                self.documents.get_mut(document).waiting += 1;
                self.waiting
                    .entry(chunk.piece.content)
                    .or_default()
                    .push(slot);
            }
        }
        if self.is_observed && !legs.is_empty() {
            let fact = self.fact(slot, state, known);
            tally.changes.push(LegChange::Appeared {
                at: tally.at,
                legs,
                fact,
            });
        }
        slot
    }

    /// Appends a slot's vector to the head; false when it is refused.
    fn link_vector(&mut self, slot: u32, vector: &[f32], at: Time) -> bool {
        let leg = self
            .vectors
            .as_mut()
            .expect("only called with a vector leg");
        match leg.append(slot, vector) {
            Some(place) => {
                self.slots.set_place(slot, place);
                self.slots.set_vector(slot, at);
                true
            }
            None => {
                self.vectors_refused += 1;
                false
            }
        }
    }

    /// Closes a chunk's slot.
    fn retire(&mut self, slot: u32, key: &Key, state: &Arc<DocumentState>, tally: &mut Tally) {
        let at = tally.at;
        let has_vector = self.slots.has_vector(slot, NEVER - 1);
        let number = self.slots.hot(slot).document;
        if self.vectors.is_some() && !has_vector {
            self.documents.get_mut(number).waiting -= 1;
            let content = self.slots.content(slot);
            if let Some(waiting) = self.waiting.get_mut(&content) {
                waiting.retain(|waiter| *waiter != slot);
                if waiting.is_empty() {
                    self.waiting.remove(&content);
                }
            }
        }
        let forward = self.slots.terms(slot);
        self.keyword.retire(forward);
        let terms = self.keyword.terms(forward);
        let length = self.slots.hot(slot).length;
        tally.count(-1, length, terms.into_iter().map(|(term, _)| term));
        self.slots.close(slot, at);
        self.closed_slots.push_back((at, slot));
        let legs = Legs {
            vector: has_vector,
            keyword: self.config.keyword,
        };
        if self.is_observed && !legs.is_empty() {
            let fact = ChunkFact {
                chunk: self.slots.chunk(slot),
                document: key.clone(),
                version: state.version,
                terms: Arc::from([]),
                length,
                vector: None,
                attributes: state.attributes.clone(),
            };
            tally.changes.push(LegChange::Vanished { at, legs, fact });
        }
    }

    /// A late fact: chunks that wait for this content join the vector leg from `at` on. A vector of
    /// the wrong length or without a finite norm is counted and ignored.
    pub fn apply_vector(
        &mut self,
        at: Time,
        content: ContentHash,
        vector: &Arc<[f32]>,
    ) -> Vec<LegChange> {
        self.step_to(at);
        let Some(waiting) = self.waiting.remove(&content) else {
            return Vec::new();
        };
        let mut tally = Tally::new(at);
        let mut pending = 0;
        let mut refused = Vec::new();
        for slot in waiting {
            if !self.link_vector(slot, vector, at) {
                refused.push(slot);
                continue;
            }
            let number = self.slots.hot(slot).document;
            let document = self.documents.get_mut(number);
            document.waiting -= 1;
            pending -= i64::from(document.waiting == 0);
            if self.is_observed {
                let open = document
                    .versions
                    .last()
                    .expect("a live chunk has an open version");
                let state = open.state.clone();
                let fact = self.fact(slot, &state, Some(vector.clone()));
                let legs = Legs {
                    vector: true,
                    keyword: false,
                };
                tally.changes.push(LegChange::Appeared { at, legs, fact });
            }
        }
        if !refused.is_empty() {
            self.waiting.insert(content, refused);
        }
        self.finish(tally, pending)
    }

    /// The complete fact of a live chunk; reads the stored vector when `vector` is not at hand.
    fn fact(&self, slot: u32, state: &Arc<DocumentState>, vector: Option<Arc<[f32]>>) -> ChunkFact {
        let hot = self.slots.hot(slot);
        let place = self.slots.place(slot);
        let stored = || {
            let leg = self.vectors.as_ref().filter(|_| place != NOWHERE)?;
            Some(Arc::from(leg.read(place)))
        };
        ChunkFact {
            chunk: self.slots.chunk(slot),
            document: self.documents.get(hot.document).key.clone(),
            version: state.version,
            terms: self.keyword.terms(self.slots.terms(slot)).into(),
            length: hot.length,
            vector: vector.or_else(stored),
            attributes: state.attributes.clone(),
        }
    }

    fn step_to(&mut self, at: Time) {
        assert!(
            at >= self.now,
            "changes come in time order: {at} after {}",
            self.now
        );
        self.now = at;
    }

    fn finish(&mut self, mut tally: Tally, pending: i64) -> Vec<LegChange> {
        tally.consolidate();
        self.ledger.book(tally.at, &tally.statistics, pending);
        if self.is_observed && !tally.statistics.is_empty() {
            let (at, delta) = (tally.at, tally.statistics);
            tally.changes.push(LegChange::Statistics { at, delta });
        }
        tally.changes
    }

    /// N, Σ length and df of the terms at `at`, exact for `since ≤ at`. Cost: the ticks after `at`
    /// times the terms.
    pub fn statistics(&self, terms: &[Term], at: Time) -> Statistics {
        self.ledger
            .statistics(terms, |term| self.keyword.frequency(term), at)
    }

    /// Documents whose newest version at `at` has a chunk without a vector.
    pub fn pending_documents(&self, at: Time) -> u64 {
        self.ledger.pending(at)
    }

    /// A document as of `at`; `None` when it is not there then.
    pub fn document(&self, key: &Key, at: Time) -> Option<DocumentView> {
        let version = self.documents.get(self.documents.find(key)?).version(at)?;
        let chunks = version
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| **slot != NONE);
        let chunks = chunks.map(|(ordinal, slot)| ChunkView {
            ordinal: ordinal as u32,
            chunk: self.slots.chunk(*slot),
            has_vector: self.slots.has_vector(*slot, at),
        });
        let chunks = chunks.collect();
        Some(DocumentView {
            state: version.state.clone(),
            from: version.from,
            chunks,
        })
    }

    /// All documents as of `at`, by number.
    pub fn documents(&self, at: Time) -> impl Iterator<Item = (&Key, DocumentView)> {
        self.documents.at(at).filter_map(move |(number, _)| {
            let key = &self.documents.get(number).key;
            Some((key, self.document(key, at)?))
        })
    }

    /// The texts of all chunks that can still be read, at whatever time, about `room` of them, of
    /// documents from number `from` on; and the number to go on with, if there are more. Blank pieces
    /// are among them. Cost: linear in what is replied.
    pub fn contents(&self, from: u32, room: usize) -> (Vec<ContentHash>, Option<u32>) {
        self.documents.contents(from, room)
    }

    /// Promises that nobody reads before `since` any more. Cheap; [`Shard::maintain`] frees.
    pub fn compact(&mut self, since: Time) {
        self.since = self.since.max(since);
        self.ledger.compact(self.since);
    }

    /// One bounded round of upkeep, never blocking: gives back what `compact` made unreachable,
    /// swaps in a finished generation, hands a full head, a half-dead generation or small
    /// generations to the builder. Changes nothing that can be seen. Aim: ≤ 2 ms.
    pub fn maintain(&mut self) -> Maintenance {
        let mut done = Maintenance::default();
        // Postings visited per call: 1 M is about 1 ms.
        let mut budget: usize = 1 << 20;
        while let Some((to, slot)) = self.closed_slots.front().copied() {
            if to > self.since || budget == 0 {
                break;
            }
            self.closed_slots.pop_front();
            if let Some(leg) = &mut self.vectors {
                leg.release(self.slots.place(slot));
            }
            let forward = self.slots.release(slot);
            let visited = self.keyword.release(&forward, &mut self.slots);
            budget = budget.saturating_sub(visited + 64 * (forward.len() + 1));
            done.released += 1;
        }
        while let Some((to, number)) = self.closed_versions.front().copied() {
            if to > self.since || budget == 0 {
                break;
            }
            self.closed_versions.pop_front();
            self.documents.compact(number, self.since);
            budget = budget.saturating_sub(256);
        }
        done.has_more = budget == 0;
        if let Some(leg) = &mut self.vectors {
            let upkeep = leg.maintain(&mut self.slots);
            done.submitted = upkeep.submitted;
            done.swapped_in = upkeep.swapped_in;
            done.failures = upkeep.failures;
            done.has_more |= upkeep.swapped_in > 0;
        }
        done
    }

    /// Sizes now. Cost: linear in slots (bytes of the forward index): for metrics, not per question.
    pub fn sizes(&self) -> ShardSizes {
        let live = self.ledger.chunks(NEVER - 1);
        let leg = self
            .vectors
            .as_ref()
            .map(VectorLeg::sizes)
            .unwrap_or_default();
        let bytes = self.slots.bytes() + self.keyword.bytes() + self.ledger.bytes() + leg.bytes;
        ShardSizes {
            chunks_live: live,
            chunks_dead: self.closed_slots.len() as u64,
            documents: self.documents.len() as u64,
            head: leg.scanned as u64,
            vectors: leg.rows as u64,
            generations: leg.generations as u64,
            terms: self.keyword.len() as u64,
            vectors_refused: self.vectors_refused,
            bytes: bytes as u64,
        }
    }
}
