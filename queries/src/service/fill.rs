//! The late path: vectors that rows did not wait for (a new index's first fill, an encoder that was
//! away, a full queue, a restart) are found by asking the shards, and requested; those of a column are read
//! from their rows. They enter as facts.
//!
//! ```text
//! shards: chunks without a vector ─┬─ stored already ─▶ bound again
//!    ▲ again while something comes ├─ waiting in the queue ─▶ will be announced
//!    └──────────── gaps ◀──────────├─ no room ─▶ asked for again when there is
//!                                  └─ refused by the model ─▶ a dead letter of its document
//! ```
//!
//! Invariants: a text that waits already is not asked for twice; a text that a model refuses is a dead
//! letter of the relation that is indexed, with the document's key and the column's name, as long as
//! the document has it and the model refuses it; the chunk itself lives on in the keyword leg.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use engine::contract::{EmbedError, EmbedFault};
use engine::error::{DataError, DeadLetter};
use engine::letters::LetterId;
use engine::model::{ContentHash, Key, ModelId, ObjectId, VectorFact};
use engine::runtime::{Announcer, AskTime};
use operators::embed::Priority;

use super::Inner;
use super::asking::PATIENCE;
use crate::render::{Answer, Declared, IndexSpec, IndexedValue, MissingChunk, ModelKind, Question};

/// The code of a dead letter of a text that a model refuses.
pub(super) const TEXT_REFUSED: &str = "text-refused";
/// Missing chunks asked for at a time, each worker, beside refused ones.
const FILL_CHUNKS: usize = 2_048;
/// Rows that are read at once.
const ROWS_AT_ONCE: usize = 64;
/// Between rounds.
const FILL_PAUSE: Duration = Duration::from_millis(500);
/// Seconds between looks at whether documents still have what was refused.
const LETTERS_EVERY: u32 = 10;

/// What the late path remembers between its rounds.
#[derive(Default)]
pub(super) struct Fills {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Indexes that are being filled, and whether somebody asked for it meanwhile.
    running: HashMap<ObjectId, bool>,
    /// Documents that waited for vectors when they were counted last, by index.
    pending: HashMap<ObjectId, u64>,
    /// Dead letters of refused texts, by index.
    letters: HashMap<ObjectId, HashSet<LetterId>>,
}

impl Fills {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller is to fill an index; who does it already goes another round.
    fn begin(&self, index: ObjectId) -> bool {
        let mut state = self.lock();
        let is_running = state.running.contains_key(&index);
        state.running.insert(index, is_running);
        !is_running
    }

    /// Whether an index is filled: nothing is missing, and nobody asked since the last round.
    fn end(&self, index: ObjectId) -> bool {
        let mut state = self.lock();
        match state.running.get_mut(&index) {
            Some(is_asked @ true) => {
                *is_asked = false;
                false
            }
            _ => {
                state.running.remove(&index);
                true
            }
        }
    }
}

/// What became of a request's texts at once: those that the model had refused before.
type Refusals = Arc<Mutex<HashMap<ContentHash, EmbedError>>>;

impl Inner {
    /// Asks for missing vectors until none is missing that can be had.
    pub(super) fn fill(self: &Arc<Self>, index: &Arc<IndexSpec>) {
        let id = index.object.id;
        if index.model.is_none() || !self.fills.begin(id) {
            return;
        }
        let inner = Arc::downgrade(self);
        let index = Arc::clone(index);
        self.runtime.spawn(async move {
            loop {
                let round = fill_round(&inner, &index).await;
                let Some(inner) = inner.upgrade() else { return };
                let is_over = match round {
                    Round::Coming(coming) => coming == 0,
                    // Busy workers, or an index that is not sealed yet: what is missing stays missing.
                    Round::NotAnswered => inner.pipeline.get(id).is_none(),
                    Round::NobodyToAsk => true,
                };
                if is_over && inner.fills.end(id) {
                    return;
                }
                drop(inner);
                tokio::time::sleep(FILL_PAUSE).await;
            }
        });
    }

    /// Fills the indexes whose models turned texts away, or refused some; called every second.
    pub(super) fn fill_gaps(self: &Arc<Self>, seconds: u32) {
        let all = self.pipeline.all();
        let indexes = all.iter().filter_map(|declared| match declared {
            Declared::Index(index) => Some(index),
            _ => None,
        });
        let indexes: Vec<_> = indexes.collect();
        let mut gaps: HashMap<ModelId, bool> = HashMap::new();
        for index in indexes {
            let Some(ModelKind::Encoder(encoder)) = &index.model else {
                continue;
            };
            let model = encoder.id();
            // Told once a model, and it may have several indexes.
            let is_gap = *gaps
                .entry(model)
                .or_insert_with(|| self.embed.take_gap(model));
            let has_letters = self.fills.lock().letters.contains_key(&index.object.id);
            if is_gap || has_letters && seconds.is_multiple_of(LETTERS_EVERY) {
                self.fill(index);
            }
        }
    }

    /// Fills an index in which as many documents wait as when they were counted last: rows that were prepared
    /// before it was there, and bound after its first fill, have asked for nothing.
    pub(super) fn fill_if_stuck(self: &Arc<Self>, index: &Arc<IndexSpec>, pending: u64) {
        let before = self.fills.lock().pending.insert(index.object.id, pending);
        if pending > 0 && before == Some(pending) {
            self.fill(index);
        }
    }

    /// Forgets what is known of an index that is gone.
    pub(super) fn forget_refused(&self, index: ObjectId) {
        let mut state = self.fills.lock();
        state.pending.remove(&index);
        let gone = state.letters.remove(&index);
        drop(state);
        let letters = self.engine.dead_letters();
        gone.into_iter()
            .flatten()
            .for_each(|letter| letters.retract_letter(letter));
    }

    /// Makes the dead letters of an index be those of the refused texts that its documents have. One
    /// whose text is offered again stays until it has its vector.
    fn note_refused(
        &self,
        index: &IndexSpec,
        missing: &[MissingChunk],
        refusals: &HashMap<ContentHash, EmbedError>,
    ) {
        let letters = self.engine.dead_letters();
        let mut now = HashSet::new();
        let mut fresh = Vec::new();
        let mut state = self.fills.lock();
        let before = state.letters.remove(&index.object.id).unwrap_or_default();
        for chunk in missing {
            let refusal = refusals.get(&chunk.content);
            if refusal.is_none() && before.is_empty() {
                continue;
            }
            let why = refusal.map_or_else(String::new, ToString::to_string);
            let letter = Arc::new(refused_letter(index, chunk, &why));
            // A good row of its key may have ended it, and brought another text that is refused.
            if before.contains(&letter.id()) && letters.get(letter.id()).is_some() {
                now.insert(letter.id());
            } else if refusal.is_some() && now.insert(letter.id()) {
                fresh.push(letter);
            }
        }
        if !now.is_empty() {
            state.letters.insert(index.object.id, now.clone());
        }
        drop(state);
        for gone in before.difference(&now) {
            letters.retract_letter(*gone);
        }
        letters.add(self.engine.clock().now_micros(), fresh);
    }
}

/// The dead letter of a document with a text that the model refuses.
fn refused_letter(index: &IndexSpec, chunk: &MissingChunk, why: &str) -> DeadLetter {
    let name = &index.object.name;
    let column = &index.definition.column;
    let detail = format!("column {column}: index \"{name}\": {why}");
    let error = DataError::new("text-refused", detail)
        .expected("a text that the model takes")
        .hint("cut it smaller (CHUNK BY … max_tokens), or see what the model's server says");
    let position = format!("index {name} text {}", chunk.content);
    DeadLetter::new(
        &*index.definition.on,
        position,
        error,
        chunk.text.as_bytes(),
    )
    .key(Some(chunk.key.clone()))
}

/// What a round came to.
enum Round {
    /// So many texts are on their way.
    Coming(usize),
    /// The workers did not say what is missing.
    NotAnswered,
    /// There is no model to ask, or no engine.
    NobodyToAsk,
}

async fn fill_round(inner: &Weak<Inner>, index: &Arc<IndexSpec>) -> Round {
    let Some(inner) = inner.upgrade() else {
        return Round::NobodyToAsk;
    };
    let id = index.object.id;
    let Some(model) = &index.model else {
        return Round::NobodyToAsk;
    };
    // What is refused must not hide what is not.
    let limit = FILL_CHUNKS + inner.embed.refused(model.id());
    let question = Question::Missing { index: id, limit };
    let asked = inner
        .ask(vec![id], AskTime::Newest, PATIENCE, question)
        .await;
    let Ok((_, Answer::Missing(missing))) = asked else {
        return Round::NotAnswered;
    };
    let mut coming = 0;
    let mut texts: HashMap<ContentHash, Arc<str>> = HashMap::new();
    for chunk in &missing {
        match inner.vectors.find(model.id(), chunk.content) {
            // Stored, and its fact was lost with an unlogged tick: bind it again.
            Some(at) => inner.engine.vector_stored(VectorFact {
                model: model.id(),
                content: chunk.content,
                at,
            }),
            None if inner.embed.is_waiting(model.id(), chunk.content) => {}
            None => {
                texts
                    .entry(chunk.content)
                    .or_insert_with(|| chunk.text.as_str().into());
                continue;
            }
        }
        coming += 1;
    }
    let ModelKind::Encoder(encoder) = model else {
        let keys = missing.into_iter();
        let keys = keys.filter(|chunk| texts.contains_key(&chunk.content));
        let keys = keys.map(|chunk| chunk.key).collect();
        return fill_from_rows(&inner, index, keys, coming).await;
    };
    let asked = texts.len();
    let refusals = inner.request_late(encoder.id(), texts);
    let refusals = refusals
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    inner.note_refused(index, &missing, &refusals);
    Round::Coming(coming + asked - refusals.len())
}

/// A column's vector comes with its row, which may have been there before its index: then it is read from
/// there. `coming`: so many are on their way.
async fn fill_from_rows(
    inner: &Arc<Inner>,
    index: &Arc<IndexSpec>,
    keys: HashSet<Key>,
    mut coming: usize,
) -> Round {
    let mut keys = keys.into_iter();
    let mut reads = tokio::task::JoinSet::new();
    loop {
        while reads.len() < ROWS_AT_ONCE
            && let Some(key) = keys.next()
        {
            reads.spawn(store_vector_of(Arc::clone(inner), Arc::clone(index), key));
        }
        match reads.join_next().await {
            None => return Round::Coming(coming),
            Some(Ok(Some(count))) => coming += count,
            Some(_) => return Round::NotAnswered,
        }
    }
}

/// Stores the vector that a row has now, and announces it; how many that are. `None`: not answered.
async fn store_vector_of(inner: Arc<Inner>, index: Arc<IndexSpec>, key: Key) -> Option<usize> {
    let model = index.model.as_ref()?.id();
    let question = Question::Rows {
        collection: index.on,
        key: Some(key),
    };
    let asked = inner.ask(vec![index.on], AskTime::Newest, PATIENCE, question);
    let Ok((_, Answer::Rows(rows))) = asked.await else {
        return None;
    };
    let mut count = 0;
    for (_, version) in rows {
        let (value, _) = index.read(&version.row);
        if let IndexedValue::Vector(vector) = &value {
            for piece in index.pieces(&value).iter() {
                let content = piece.content;
                let at = inner.vectors.put(model, content, vector);
                let fact = VectorFact { model, content, at };
                inner.engine.vector_stored(fact);
                count += 1;
            }
        }
    }
    Some(count)
}

impl Inner {
    /// Asks for vectors; each is announced when it is stored. What the model refused lately is told.
    fn request_late(&self, model: ModelId, texts: HashMap<ContentHash, Arc<str>>) -> Refusals {
        let refusals = Refusals::default();
        if texts.is_empty() {
            return refusals;
        }
        let announcer: Announcer = self.engine.announcer();
        let told = Arc::clone(&refusals);
        let items = texts.into_iter().map(|(content, text)| (content, text, 0));
        let done = move |content, result| match result {
            Ok(at) => announcer.vector_stored(VectorFact { model, content, at }),
            Err(
                error @ EmbedError {
                    fault: EmbedFault::Text,
                    ..
                },
            ) => {
                announcer.vector_refused(model, content);
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.insert(content, error);
            }
            // Asked for again.
            Err(_) => {}
        };
        self.embed
            .request(model, items.collect(), Priority::Bulk, Box::new(done));
        refusals
    }
}
