//! Planned questions and their answers, as values that cross workers.

use engine::contract::{ChangePage, NextPage, RowChange};
use engine::error::DataError;
use engine::model::{ContentHash, DocVersion, Key, ObjectId, Time};
use operators::cache::{CacheEvent, CacheOp, EntryView, LookupOutcome, Question as CacheQuestion};
use operators::index::{Candidate, DocumentView, Merged, ShardQuestion, ShardSizes, Statistics};
use serde::{Deserialize, Serialize};

/// A question pinned to a time by the sequencer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// Rows of a source or view; of one key, or all.
    Rows {
        /// The collection.
        collection: ObjectId,
        /// One document only.
        key: Option<Key>,
    },
    /// A page of what changed, or of what there is.
    Changes(ChangesQuestion),
    /// Ranked chunks.
    Search(SearchQuestion),
    /// A document's chunks in an index.
    Document {
        /// The index.
        index: ObjectId,
        /// The document.
        key: Key,
    },
    /// Every live chunk of an index, as documents.
    Documents {
        /// The index.
        index: ObjectId,
    },
    /// Chunks whose vector is missing.
    Missing {
        /// The index.
        index: ObjectId,
        /// At most so many texts a worker.
        limit: usize,
    },
    /// A page of the texts of an index that can still be read, at whatever time.
    Contents {
        /// The index.
        index: ObjectId,
        /// Where the shards go on.
        from: u32,
        /// About so many texts a worker.
        limit: usize,
    },
    /// Documents whose newest version waits for its embedding, and the shards' sizes.
    Sizes {
        /// The index.
        index: ObjectId,
    },
    /// The answer cache, and what a lease would see.
    Lookup(LookupQuestion),
    /// Live entries.
    Entries {
        /// The cache.
        cache: ObjectId,
    },
}

impl Question {
    /// One word for what is asked, for spans.
    pub fn kind(&self) -> &'static str {
        match self {
            Question::Rows { .. } => "rows",
            Question::Changes(_) => "changes",
            Question::Search(_) => "search",
            Question::Document { .. } => "document",
            Question::Documents { .. } => "documents",
            Question::Missing { .. } => "missing",
            Question::Sizes { .. } => "sizes",
            Question::Lookup(_) => "lookup",
            Question::Entries { .. } => "entries",
            Question::Contents { .. } => "contents",
        }
    }
}

/// The changes of a source or view in (`after`, the question's time]; all rows at that time when `after`
/// is `None`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangesQuestion {
    /// The collection.
    pub collection: ObjectId,
    /// Everything up to here is known.
    pub after: Option<Time>,
    /// What the page before said; all workers begin at their first key without.
    pub page: Option<NextPage>,
    /// Bytes of changes from one worker (soft for one key).
    pub most: usize,
}

/// A search over the shards of one index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SearchQuestion {
    /// The index.
    pub index: ObjectId,
    /// What is asked.
    pub question: ShardQuestion,
    /// Predicate over included columns with its parameters, as JSON text (workers may be in other
    /// processes, and JSON values do not travel in binary).
    pub filter: Option<(String, String)>,
}

/// A cache look-up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LookupQuestion {
    /// The cache.
    pub cache: ObjectId,
    /// The question as the cache compares it.
    pub question: CacheQuestion,
    /// The retrieval that a lease would stand on.
    pub search: SearchQuestion,
}

/// An answer, gathered over all workers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Question::Rows`], unordered.
    Rows(Vec<(Key, DocVersion)>),
    /// To [`Question::Changes`].
    Changes(ChangePage),
    /// To [`Question::Search`].
    Search(SearchAnswer),
    /// To [`Question::Document`] and [`Question::Documents`].
    Documents(Vec<DocumentAnswer>),
    /// To [`Question::Missing`].
    Missing(Vec<MissingChunk>),
    /// To [`Question::Contents`], with repetitions, and where to go on, if there are more.
    Contents(Vec<ContentHash>, Option<u32>),
    /// To [`Question::Sizes`], by worker.
    Sizes(Vec<(u64, ShardSizes)>),
    /// To [`Question::Lookup`].
    Lookup(Box<LookupAnswer>),
    /// To [`Question::Entries`].
    Entries(Vec<EntryAnswer>),
    /// The question could not be planned on the workers.
    Failed(DataError),
}

/// A merged search.
#[derive(Debug, Clone)]
pub struct SearchAnswer {
    /// Hits, best first, with their margins.
    pub merged: Merged,
    /// Statistics at the question's time.
    pub statistics: Statistics,
    /// Documents that wait for their embedding.
    pub pending: u64,
}

/// A look-up's outcome.
#[derive(Debug, Clone)]
pub struct LookupAnswer {
    /// The best of all shards.
    pub outcome: LookupOutcome,
    /// What a lease would see.
    pub search: SearchAnswer,
}

/// A document as an index has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DocumentAnswer {
    /// Its key.
    pub key: Key,
    /// Its chunks.
    pub view: DocumentView,
}

/// A chunk without a vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingChunk {
    /// Of which document.
    pub key: Key,
    /// Of which text.
    pub content: ContentHash,
    /// The text that the model gets.
    pub text: String,
}

/// A live entry.
pub type EntryAnswer = EntryView;

/// What one worker contributes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Partial {
    Rows(Vec<(Key, DocVersion)>),
    /// With the worker and the key that it goes on with.
    Changes(Vec<RowChange>, Option<(usize, Key)>),
    Candidates {
        candidates: Vec<Candidate>,
        statistics: Statistics,
        pending: u64,
    },
    Documents(Vec<DocumentAnswer>),
    Missing(Vec<MissingChunk>),
    Contents(Vec<ContentHash>, Option<u32>),
    Sizes(u64, ShardSizes),
    Lookup {
        outcome: Box<LookupOutcome>,
        candidates: Vec<Candidate>,
        statistics: Statistics,
        pending: u64,
    },
    Entries(Vec<EntryView>),
    Failed(DataError),
}

/// An input of its own, beside rows and vectors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Operation {
    /// On the answer cache.
    Cache {
        /// Which one.
        cache: ObjectId,
        /// What.
        operation: CacheOp,
    },
}

/// What workers tell the service.
#[derive(Debug, Clone)]
pub enum ProgramReply {
    /// A question is answered.
    Answer {
        /// Which one.
        question: u64,
        /// The answer.
        answer: Answer,
    },
    /// Cache events of one time, in their order. Complete for that time.
    CacheEvents {
        /// The cache.
        cache: ObjectId,
        /// What happened.
        events: Vec<CacheEvent>,
    },
    /// A TTL is due.
    Due(Time),
    /// A rendered row turned bad (`Some`), or what was bad there is gone (`None`).
    RowError {
        /// The relation.
        relation: ObjectId,
        /// The document.
        key: Key,
        /// The error.
        error: DataError,
        /// +1 or −1.
        diff: i64,
    },
    /// Not a worker's: dropped by the service when it comes to it, after all that workers told before.
    Mark(tokio::sync::mpsc::UnboundedSender<()>),
}
