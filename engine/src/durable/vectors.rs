//! The embedding store: (model, text hash) → vector, so that nothing is embedded twice.
//!
//! ```text
//!  put ─▶ id 17 ─▶ memory + pending ──flush──▶ slot 4 of vectors-0000000002.hwv      (append, sync)
//!  VectorRef(17) ─▶ place (file 2, slot 4) ─▶ get: memory, else one read
//!  mark what is needed ─▶ collect:  file 2 is mostly garbage ─▶ its live slots into file 9
//!                                                          ─▶ places move ─▶ file 2 goes
//! ```
//!
//! Who needs a vector is not counted but asked: those who hold texts [`mark`](EmbeddingStore::mark) them
//! before each [`collect`](EmbeddingStore::collect). A count would have to survive every crash together with
//! what it counts.
//!
//! A [`VectorRef`] is an id that is given once and never again; where its bytes lie may change.
//! Vectors are bytes of a cache that must not be lost while the log names them: the log's writer
//! calls [`EmbeddingStore::flush`] before it writes a tick with vector facts
//! ([`super::LogOptions::before_vectors`]).
//!
//! Invariants: one vector per (model, text), the first one put; after `flush` returned, everything
//! put before survives; at any moment each id has one place, or waits in memory to be written;
//! a file belongs to one model, and one file per model is open.
//!
//! Limits: the index in memory costs about 130 bytes a vector; vectors in memory are bounded by
//! [`VectorOptions::memory_bytes`], oldest out first. Format and damage: [`super::vector_file`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::record::corrupt;
use super::vector_file::{self, Header, Slot, file_name, file_number, slot_bytes};
use crate::contract::{AppendFile, Store, VectorMemo};
use crate::error::WorldError;
use crate::limits::{SEGMENT_BYTES, VECTOR_MEMORY_BYTES};
use crate::model::{ContentHash, ModelId, VectorFact, VectorRef};
use crate::telemetry;

/// How an embedding store is kept.
#[derive(Debug, Clone, Copy)]
pub struct VectorOptions {
    /// A file is closed beyond this size.
    pub segment_bytes: u64,
    /// Vectors kept in memory, bytes of floats. Those not yet written are kept beyond it.
    pub memory_bytes: usize,
}

impl Default for VectorOptions {
    fn default() -> Self {
        VectorOptions {
            segment_bytes: SEGMENT_BYTES,
            memory_bytes: VECTOR_MEMORY_BYTES,
        }
    }
}

/// A vector is forgotten by this collection after the one before which it was last needed.
const WANTED_ROUNDS: u64 = 3;

/// What [`EmbeddingStore::collect`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Vectors forgotten.
    pub vectors: u64,
    /// Files rewritten or deleted.
    pub files: u64,
    /// Bytes given back to the disk.
    pub bytes: u64,
}

/// Durable vectors by (model, text). Shared between threads.
pub struct EmbeddingStore {
    store: Arc<dyn Store>,
    options: VectorOptions,
    index: Mutex<Index>,
    /// Held while files are written; always taken before `index`.
    writing: Mutex<HashMap<ModelId, OpenFile>>,
    /// One collection at a time.
    collecting: Mutex<()>,
}

#[derive(Default)]
struct Index {
    by_text: HashMap<(ModelId, ContentHash), u64, ahash::RandomState>,
    entries: HashMap<u64, Entry, ahash::RandomState>,
    files: BTreeMap<u64, FileInfo>,
    dimensions: HashMap<ModelId, u32>,
    next_id: u64,
    next_file: u64,
    /// Ids not yet written, in the order of `put`.
    pending: Vec<u64>,
    /// Ids with their vector in memory, oldest first.
    in_memory: VecDeque<u64>,
    memory_bytes: usize,
    /// Collections so far.
    epoch: u64,
}

struct Entry {
    model: ModelId,
    content: ContentHash,
    /// `None` until it is written.
    place: Option<Place>,
    vector: Option<Arc<[f32]>>,
    /// The epoch in which somebody last got this id or needed it.
    wanted_in: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    file: u64,
    slot: u32,
}

#[derive(Debug, Clone, Copy)]
struct FileInfo {
    dimensions: u32,
    slots: u32,
    is_open: bool,
}

struct OpenFile {
    number: u64,
    file: Box<dyn AppendFile>,
    slots: u32,
    is_dirty: bool,
}

impl EmbeddingStore {
    /// Opens the vectors of a store. Cost: reads and checks all of them once, sequentially.
    ///
    /// Errors: the store's; [`WorldError::Corrupt`] when bytes that were durable are damaged.
    pub fn open(store: Arc<dyn Store>, options: VectorOptions) -> Result<Self, WorldError> {
        let mut index = Index {
            next_id: 1,
            next_file: 1,
            ..Index::default()
        };
        let mut writing = HashMap::new();
        let mut headers = BTreeMap::new();
        let mut open_files = HashMap::new();
        for name in store.list()? {
            let Some(number) = file_number(&name) else {
                continue;
            };
            let header = Header::load(&*store, &name)?;
            index.next_file = index.next_file.max(number + 1);
            index.next_id = index.next_id.max(header.next_id);
            headers.insert(number, header);
        }
        for (number, header) in headers.iter().filter(|(_, header)| !header.is_sealed) {
            open_files.insert(header.model, *number); // the last one by number is open
        }
        for (number, header) in headers {
            // Only the open file may end torn; all others were synced before they were closed.
            let is_sealed = open_files.get(&header.model) != Some(&number);
            index.load(
                &*store,
                &options,
                number,
                &Header {
                    is_sealed,
                    ..header
                },
            )?;
        }
        for (model, number) in open_files {
            let info = index.files.get_mut(&number).expect("loaded above");
            info.is_open = true;
            let mut file = store.append(&file_name(number))?;
            let bytes = vector_file::slot_offset(info.dimensions, info.slots);
            if file.len() > bytes {
                tracing::warn!(
                    file = %file_name(number), offset = bytes, lost_bytes = file.len() - bytes,
                    "cut off the torn end that a crash left in the vectors"
                );
                file.truncate(bytes)?;
            }
            file.sync()?;
            writing.insert(
                model,
                OpenFile {
                    number,
                    file,
                    slots: info.slots,
                    is_dirty: false,
                },
            );
        }
        let (index, writing) = (Mutex::new(index), Mutex::new(writing));
        Ok(EmbeddingStore {
            store,
            options,
            index,
            writing,
            collecting: Mutex::new(()),
        })
    }

    /// The vector of a text, if it is stored.
    pub fn find(&self, model: ModelId, content: ContentHash) -> Option<VectorRef> {
        let mut index = self.index();
        let id = *index.by_text.get(&(model, content))?;
        let epoch = index.epoch;
        index
            .entries
            .get_mut(&id)
            .expect("every text has its entry")
            .wanted_in = epoch;
        Some(VectorRef(id))
    }

    /// Stores the vector of a text; durable after [`EmbeddingStore::flush`]. When the text has one
    /// already, that one stays and its reference is returned.
    ///
    /// # Panics
    /// When the vector has another length than the model's others: a model has one dimension.
    pub fn put(&self, model: ModelId, content: ContentHash, vector: &[f32]) -> VectorRef {
        if let Some(found) = self.find(model, content) {
            return found;
        }
        let vector: Arc<[f32]> = Arc::from(vector);
        let mut index = self.index();
        if let Some(&id) = index.by_text.get(&(model, content)) {
            return VectorRef(id); // put by another thread this very moment
        }
        let dimensions = vector.len() as u32;
        let expected = *index.dimensions.entry(model).or_insert(dimensions);
        assert_eq!(dimensions, expected, "vectors of model {model}");
        let id = index.next_id;
        index.next_id += 1;
        let wanted_in = index.epoch;
        let entry = Entry {
            model,
            content,
            place: None,
            vector: None,
            wanted_in,
        };
        index.entries.insert(id, entry);
        index.by_text.insert((model, content), id);
        index.pending.push(id);
        index.remember(id, vector, self.options.memory_bytes);
        metrics::counter!(telemetry::VECTORS_STORED.name).increment(1);
        VectorRef(id)
    }

    /// The vector, from memory or else from its file; `None` for an unknown reference, and, with a
    /// log line, when the file cannot be read.
    pub fn get(&self, at: VectorRef) -> Option<Arc<[f32]>> {
        self.read(at).unwrap_or_else(|error| {
            tracing::error!(%error, vector = at.0, "cannot read a stored vector");
            None
        })
    }

    /// As [`EmbeddingStore::get`], with the error.
    pub fn read(&self, at: VectorRef) -> Result<Option<Arc<[f32]>>, WorldError> {
        loop {
            let (place, dimensions) = {
                let index = self.index();
                let Some(entry) = index.entries.get(&at.0) else {
                    return Ok(None);
                };
                if let Some(vector) = &entry.vector {
                    return Ok(Some(Arc::clone(vector)));
                }
                let place = entry
                    .place
                    .expect("a vector that is not in memory was written");
                (place, index.files[&place.file].dimensions)
            };
            metrics::counter!(telemetry::VECTOR_READS.name).increment(1);
            let name = file_name(place.file);
            let loaded = Slot::load(&*self.store, &name, dimensions, place.slot);
            let mut index = self.index();
            if index
                .entries
                .get(&at.0)
                .is_some_and(|entry| entry.place != Some(place))
            {
                continue; // collected meanwhile: it lies elsewhere now
            }
            let slot = loaded?;
            if slot.id != at.0 {
                let offset = vector_file::slot_offset(dimensions, place.slot);
                let detail = format!("vector {} lies where {} should", slot.id, at.0);
                return Err(corrupt(&name, offset, detail));
            }
            index.remember(at.0, Arc::clone(&slot.vector), self.options.memory_bytes);
            return Ok(Some(slot.vector));
        }
    }

    /// The (model, text) of a reference.
    pub fn owner(&self, at: VectorRef) -> Option<(ModelId, ContentHash)> {
        self.index()
            .entries
            .get(&at.0)
            .map(|entry| (entry.model, entry.content))
    }

    /// Whether a vector survives a crash.
    pub fn is_durable(&self, at: VectorRef) -> bool {
        self.index()
            .entries
            .get(&at.0)
            .is_some_and(|entry| entry.place.is_some())
    }

    /// Vectors stored.
    pub fn len(&self) -> usize {
        self.index().entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Somebody needs the vectors of these texts: none of them is forgotten by the next two
    /// [`EmbeddingStore::collect`]. Texts without a vector are passed over.
    pub fn mark(&self, model: ModelId, contents: &[ContentHash]) {
        let mut index = self.index();
        let index = &mut *index;
        for content in contents {
            let id = index.by_text.get(&(model, *content));
            if let Some(entry) = id.and_then(|id| index.entries.get_mut(id)) {
                entry.wanted_in = index.epoch;
            }
        }
    }

    /// As [`EmbeddingStore::mark`], all vectors of a model.
    pub fn mark_all(&self, model: ModelId) {
        let mut index = self.index();
        let epoch = index.epoch;
        let entries = index.entries.values_mut();
        entries
            .filter(|entry| entry.model == model)
            .for_each(|entry| entry.wanted_in = epoch);
    }

    /// Whether somebody needed or got the text's vector of late.
    pub fn is_wanted(&self, model: ModelId, content: ContentHash) -> bool {
        let index = self.index();
        let id = index.by_text.get(&(model, content));
        let entry = id.and_then(|id| index.entries.get(id));
        entry.is_some_and(|entry| index.is_wanted(entry))
    }

    /// Makes everything put so far durable: one append and one sync a model. On an error nothing
    /// is lost; the next call tries again.
    pub fn flush(&self) -> Result<(), WorldError> {
        let mut writing = self.writing.lock().expect("no panic under this lock");
        let mut by_model: BTreeMap<ModelId, Vec<Slot>> = BTreeMap::new();
        {
            let index = self.index();
            for &id in &index.pending {
                let entry = &index.entries[&id];
                let vector = entry
                    .vector
                    .clone()
                    .expect("unwritten vectors stay in memory");
                let slot = Slot {
                    id,
                    content: entry.content,
                    synced: 0,
                    vector,
                };
                by_model.entry(entry.model).or_default().push(slot);
            }
        }
        for (model, slots) in by_model {
            self.write(&mut writing, model, slots)?;
        }
        Ok(())
    }

    fn write(
        &self,
        writing: &mut HashMap<ModelId, OpenFile>,
        model: ModelId,
        slots: Vec<Slot>,
    ) -> Result<(), WorldError> {
        let dimensions = slots[0].vector.len() as u32;
        let is_full = |open: &OpenFile| open.file.len() >= self.options.segment_bytes;
        if writing.get(&model).is_none_or(is_full) {
            let open = self.create(model, dimensions)?;
            let number = open.number;
            let closed = writing.insert(model, open);
            let mut index = self.index();
            if let Some(closed) = closed {
                index
                    .files
                    .get_mut(&closed.number)
                    .expect("open files are known")
                    .is_open = false;
            }
            index.files.insert(
                number,
                FileInfo {
                    dimensions,
                    slots: 0,
                    is_open: true,
                },
            );
        }
        let open = writing.get_mut(&model).expect("created above");
        let durable_bytes = vector_file::slot_offset(dimensions, open.slots);
        if open.is_dirty {
            open.file.truncate(durable_bytes)?;
        }
        let mut bytes = Vec::with_capacity(slots.len() * slot_bytes(dimensions));
        let ids: Vec<u64> = slots.iter().map(|slot| slot.id).collect();
        for slot in slots {
            Slot {
                synced: open.slots,
                ..slot
            }
            .encode(&mut bytes);
        }
        open.is_dirty = true;
        if let Err(error) = open.file.append(&bytes).and_then(|()| open.file.sync()) {
            if open.file.truncate(durable_bytes).is_ok() {
                open.is_dirty = false;
            }
            return Err(error);
        }
        open.is_dirty = false;
        let first = open.slots;
        open.slots += ids.len() as u32;

        let mut index = self.index();
        index
            .files
            .get_mut(&open.number)
            .expect("open files are known")
            .slots = open.slots;
        for (slot, id) in (first..).zip(&ids) {
            let entry = index
                .entries
                .get_mut(id)
                .expect("unwritten vectors are not collected");
            entry.place = Some(Place {
                file: open.number,
                slot,
            });
        }
        let index = &mut *index;
        index.pending.retain(|id| index.entries[id].place.is_none());
        index.forget(self.options.memory_bytes);
        Ok(())
    }

    /// A new open file with its header.
    fn create(&self, model: ModelId, dimensions: u32) -> Result<OpenFile, WorldError> {
        let (number, next_id) = {
            let mut index = self.index();
            index.next_file += 1;
            (index.next_file - 1, index.next_id)
        };
        let header = Header {
            model,
            dimensions,
            next_id,
            is_sealed: false,
        };
        self.store.replace(&file_name(number), &header.encode())?;
        let file = self.store.append(&file_name(number))?;
        Ok(OpenFile {
            number,
            file,
            slots: 0,
            is_dirty: false,
        })
    }

    /// Forgets vectors that nobody needs, in closed files that are more than half garbage.
    ///
    /// A vector is garbage when nobody needed it ([`EmbeddingStore::mark`]) or got it (`find`, `put`)
    /// for two whole rounds, from one collection to the next: so call this no more often than a staged
    /// row may wait for its tick. `announce` hears of vectors that may go now, before they do. Runs on the caller's thread, beside everything else. On an error some
    /// garbage stays until the next time.
    pub fn collect(&self, announce: &dyn Fn(Vec<VectorFact>)) -> Result<Collected, WorldError> {
        let _one_at_a_time = self.collecting.lock().expect("no panic under this lock");
        let mut live: BTreeMap<u64, usize> = BTreeMap::new();
        let mut unwanted = Vec::new();
        let mut garbage: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let closed: Vec<(u64, FileInfo)> = {
            let mut index = self.index();
            index.epoch += 1;
            for (id, entry) in &index.entries {
                let Some(place) = entry.place else { continue };
                // Also of an open file, which is left as it is: from now on the log's compaction leaves
                // its fact out.
                if index.is_unused(entry) {
                    unwanted.push(*id);
                }
                if index.files[&place.file].is_open {
                    continue;
                }
                match index.is_unused(entry) {
                    true => garbage.entry(place.file).or_default().push(*id),
                    false => *live.entry(place.file).or_default() += 1,
                }
            }
            let files = index.files.iter().filter(|(_, file)| !file.is_open);
            files.map(|(number, file)| (*number, *file)).collect()
        };
        // Whoever finds one of them after this says so, and it stays.
        announce(self.facts(&unwanted));
        let mut collected = Collected::default();
        for (number, info) in closed {
            let live = live.get(&number).copied().unwrap_or(0);
            if live * 2 < info.slots as usize || info.slots == 0 {
                let garbage = garbage.remove(&number).unwrap_or_default();
                self.rewrite(number, info, &garbage, &mut collected)?;
            }
        }
        Ok(collected)
    }

    fn facts(&self, ids: &[u64]) -> Vec<VectorFact> {
        let index = self.index();
        let entries = ids
            .iter()
            .filter_map(|id| Some((VectorRef(*id), index.entries.get(id)?)));
        let facts = entries.map(|(at, entry)| VectorFact {
            model: entry.model,
            content: entry.content,
            at,
        });
        facts.collect()
    }

    /// Writes the live slots of a closed file to a new one, and deletes it.
    fn rewrite(
        &self,
        number: u64,
        info: FileInfo,
        garbage: &[u64],
        collected: &mut Collected,
    ) -> Result<(), WorldError> {
        let name = file_name(number);
        let header = Header::load(&*self.store, &name)?;
        let (new_number, next_id, live) = {
            let mut index = self.index();
            for id in garbage {
                collected.vectors += u64::from(index.drop_if_unused(*id));
            }
            let live: HashMap<u64, ()> = index
                .entries
                .iter()
                .filter(|(_, entry)| entry.place.is_some_and(|place| place.file == number))
                .map(|(id, _)| (*id, ()))
                .collect();
            index.next_file += 1;
            (index.next_file - 1, index.next_id, live)
        };
        let header = Header {
            next_id,
            is_sealed: true,
            ..header
        };
        let (mut bytes, mut ids) = (header.encode(), Vec::new());
        let old = Header {
            is_sealed: true,
            ..header
        }; // closed: every slot must be readable
        vector_file::scan(&*self.store, &name, &old, |_, slot| {
            if live.contains_key(&slot.id) {
                ids.push(slot.id);
                slot.encode(&mut bytes);
            }
        })?;
        if !ids.is_empty() {
            self.store.replace(&file_name(new_number), &bytes)?;
        }
        {
            let mut index = self.index();
            let slots = ids.len() as u32;
            for (slot, id) in (0..).zip(&ids) {
                let entry = index
                    .entries
                    .get_mut(id)
                    .expect("only collect removes entries");
                entry.place = Some(Place {
                    file: new_number,
                    slot,
                });
            }
            if slots > 0 {
                index.files.insert(
                    new_number,
                    FileInfo {
                        slots,
                        is_open: false,
                        ..info
                    },
                );
            }
            index.files.remove(&number);
        }
        self.store.remove(&name)?;
        let before = vector_file::slot_offset(info.dimensions, info.slots);
        let after = if ids.is_empty() {
            0
        } else {
            bytes.len() as u64
        };
        collected.files += 1;
        collected.bytes += before.saturating_sub(after);
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no panic under this lock")
    }
}

impl VectorMemo for EmbeddingStore {
    fn get(&self, model: ModelId, content: ContentHash) -> Option<VectorRef> {
        self.find(model, content)
    }

    fn put(
        &self,
        model: ModelId,
        content: ContentHash,
        vector: &[f32],
    ) -> Result<VectorRef, WorldError> {
        Ok(EmbeddingStore::put(self, model, content, vector))
    }
}

impl Index {
    /// Reads one file into the index.
    fn load(
        &mut self,
        store: &dyn Store,
        options: &VectorOptions,
        number: u64,
        header: &Header,
    ) -> Result<(), WorldError> {
        let (model, dimensions) = (header.model, header.dimensions);
        self.dimensions.insert(model, dimensions);
        let slots = vector_file::scan(store, &file_name(number), header, |slot, found| {
            let place = Some(Place { file: number, slot });
            let content = found.content;
            self.next_id = self.next_id.max(found.id + 1);
            self.by_text.insert((model, content), found.id);
            // A crash between the two steps of a collection leaves a slot in both files.
            if let Some(entry) = self.entries.get_mut(&found.id) {
                entry.place = place;
                return;
            }
            let entry = Entry {
                model,
                content,
                place,
                vector: None,
                // As if just needed: who needs it comes to say so.
                wanted_in: self.epoch,
            };
            self.entries.insert(found.id, entry);
            if self.memory_bytes < options.memory_bytes {
                self.remember(found.id, found.vector, options.memory_bytes);
            }
        })?;
        self.files.insert(
            number,
            FileInfo {
                dimensions,
                slots,
                is_open: false,
            },
        );
        Ok(())
    }

    fn remember(&mut self, id: u64, vector: Arc<[f32]>, memory_bytes: usize) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.vector.is_none() {
            self.memory_bytes += vector.len() * 4;
            entry.vector = Some(vector);
            self.in_memory.push_back(id);
        }
        self.forget(memory_bytes);
    }

    /// Lets go of the oldest vectors that are written.
    fn forget(&mut self, memory_bytes: usize) {
        let mut looked_at = self.in_memory.len();
        while self.memory_bytes > memory_bytes && looked_at > 0 {
            looked_at -= 1;
            let Some(id) = self.in_memory.pop_front() else {
                return;
            };
            match self.entries.get_mut(&id) {
                Some(entry) if entry.place.is_none() => {
                    // Not written yet: what follows is younger and not written either.
                    self.in_memory.push_front(id);
                    return;
                }
                Some(entry) => {
                    let vector = entry.vector.take().expect("listed as in memory");
                    self.memory_bytes -= vector.len() * 4;
                }
                None => {} // collected
            }
        }
    }

    fn is_unused(&self, entry: &Entry) -> bool {
        let is_superseded = self
            .by_text
            .get(&(entry.model, entry.content))
            .is_some_and(|id| {
                self.entries
                    .get(id)
                    .is_some_and(|current| current.place != entry.place)
            });
        is_superseded || !self.is_wanted(entry)
    }

    fn is_wanted(&self, entry: &Entry) -> bool {
        entry.wanted_in + WANTED_ROUNDS > self.epoch
    }

    fn drop_if_unused(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get(&id) else {
            return false;
        };
        if !self.is_unused(entry) {
            return false;
        }
        let entry = self.entries.remove(&id).expect("just seen");
        self.memory_bytes -= entry.vector.map_or(0, |vector| vector.len() * 4);
        let text = (entry.model, entry.content);
        if self.by_text.get(&text) == Some(&id) {
            self.by_text.remove(&text);
        }
        true
    }
}
