//! The naive program: everything from scratch, from all changes at or before a time.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use engine::contract::{Embedder, Store};
use engine::durable::{InputLog, LogOptions, Replayed};
use engine::model::{Change, ChunkId, ContentHash, Key, RowCodec, Time, Value};
use engine::testing::HashedEmbedder;
use operators::chunk::{Chunker, ModelTokens};
use operators::index::Analyzer;
use queries::render::{Declared, chunking};
use serde_json::json;

use super::rig::{DIMENSIONS, Rig};

/// What the log says was bound when.
pub struct Timeline {
    ticks: BTreeMap<Time, Vec<Change>>,
    /// When each vector was bound last. One that is bound again was forgotten, because nothing had come to
    /// need it: before that it is as good as never bound.
    bound: HashMap<ContentHash, Time>,
    codec: RowCodec,
    chunker: Chunker,
    encoder: Arc<dyn Embedder>,
    begin: Time,
    /// What follows from a text alone is worked out once a text; all else at each time anew.
    cut: RefCell<HashMap<String, Rc<[Piece]>>>,
    embedded: RefCell<HashMap<String, Rc<[f32]>>>,
}

/// A chunk of a text, wherever that text stands.
struct Piece {
    text: String,
    content: ContentHash,
    occurrence: u32,
    terms: HashMap<String, u32>,
    length: u32,
}

impl Timeline {
    /// Reads the engine's own log, as a restart would.
    pub fn read(rig: &Rig) -> Timeline {
        // A copy: whoever opens a log owns it, and cuts off what its writer has not finished.
        let store: Arc<dyn Store> = Arc::new(rig.store.snapshot());
        let pipeline = rig.service.pipeline_ref();
        let Some(Declared::Index(index)) = pipeline.by_name("found") else {
            panic!("declared")
        };
        let Some(Declared::Source { codec, .. }) = pipeline.by_name("docs") else {
            panic!("declared")
        };
        // One of its own: the engine's is scripted to fail.
        let encoder: Arc<dyn Embedder> = Arc::new(HashedEmbedder::new("hashed", DIMENSIONS));
        let tokens = Arc::new(ModelTokens(Arc::clone(&encoder)));
        let mut timeline = Timeline {
            ticks: BTreeMap::new(),
            bound: HashMap::new(),
            codec: RowCodec::new(codec.schema().clone()).expect("packable"),
            chunker: Chunker::new(&chunking(&index.definition), tokens),
            encoder,
            begin: 0,
            cut: RefCell::default(),
            embedded: RefCell::default(),
        };
        let (_log, replay) = InputLog::open(store, LogOptions::default()).expect("readable");
        for record in replay {
            match record.expect("whole") {
                Replayed::Ddl(ddl) => timeline.begin = timeline.begin.max(ddl.at),
                Replayed::Tick(tick) => {
                    let changes = tick
                        .stages
                        .into_iter()
                        .flat_map(|stage| stage.changes.to_vec());
                    timeline.ticks.insert(tick.at, changes.collect());
                    let facts = tick.vectors.iter().map(|fact| (fact.content, tick.at));
                    timeline.bound.extend(facts);
                }
                _ => {}
            }
        }
        timeline
    }

    /// The ticks that everything declared can be read at.
    pub fn times(&self) -> Vec<Time> {
        self.ticks
            .keys()
            .copied()
            .filter(|at| *at >= self.begin)
            .collect()
    }

    fn cut(&self, body: &str) -> Rc<[Piece]> {
        if let Some(pieces) = self.cut.borrow().get(body) {
            return Rc::clone(pieces);
        }
        let pieces: Rc<[Piece]> = self
            .chunker
            .cut(body)
            .into_iter()
            .map(|piece| {
                let text = &body[piece.range.0 as usize..piece.range.1 as usize];
                let words = terms(text);
                let mut counted = HashMap::new();
                words
                    .iter()
                    .for_each(|word| *counted.entry(word.clone()).or_default() += 1);
                Piece {
                    text: text.to_owned(),
                    content: piece.content,
                    occurrence: piece.occurrence,
                    length: words.len() as u32,
                    terms: counted,
                }
            })
            .collect();
        let mut cut = self.cut.borrow_mut();
        Rc::clone(cut.entry(body.to_owned()).or_insert(pieces))
    }

    fn embed(&self, text: &str) -> Rc<[f32]> {
        if let Some(vector) = self.embedded.borrow().get(text) {
            return Rc::clone(vector);
        }
        let mut vectors = self.encoder.embed(&[text]).expect("not scripted to fail");
        let vector: Rc<[f32]> = vectors.pop().expect("one in, one out").into();
        let mut embedded = self.embedded.borrow_mut();
        Rc::clone(embedded.entry(text.to_owned()).or_insert(vector))
    }
}

struct Chunk {
    id: String,
    /// Where it is in its row's text.
    pieces: Rc<[Piece]>,
    number: usize,
    lang: String,
}

impl Chunk {
    fn piece(&self) -> &Piece {
        &self.pieces[self.number]
    }
}

/// The state at a time.
pub struct Naive<'a> {
    timeline: &'a Timeline,
    rows: BTreeSet<String>,
    kept: usize,
    chunks: Vec<Chunk>,
    vectors: HashSet<ContentHash>,
    pending: u64,
}

fn terms(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    Analyzer::parse("english")
        .expect("known")
        .words(text, |word| out.push(word.to_owned()));
    out
}

impl<'a> Naive<'a> {
    /// Recomputes the state at a time.
    pub fn at(timeline: &'a Timeline, at: Time) -> Naive<'a> {
        let mut live: BTreeMap<Key, &Change> = BTreeMap::new();
        for change in timeline.ticks.range(..=at).flat_map(|(_, tick)| tick) {
            live.insert(change.key.clone(), change);
        }
        let bound = timeline.bound.iter().filter(|(_, last)| **last <= at);
        let mut naive = Naive {
            timeline,
            rows: BTreeSet::new(),
            kept: 0,
            chunks: Vec::new(),
            vectors: bound.map(|(content, _)| *content).collect(),
            pending: 0,
        };
        for (key, change) in live {
            if let Some(row) = &change.row {
                naive.add(&key, &timeline.codec.unpack(row));
            }
        }
        naive
    }

    fn add(&mut self, key: &Key, values: &[Value]) {
        let texts: Vec<&str> = values
            .iter()
            .map(|value| match value {
                Value::Text(text) => &**text,
                _ => panic!("scripts push texts"),
            })
            .collect();
        self.rows.insert(json!(texts).to_string());
        if texts[2] == "xx" {
            return;
        }
        self.kept += 1;
        let strategy = self.timeline.chunker.strategy();
        let pieces = self.timeline.cut(texts[1]);
        let mut is_pending = false;
        for (number, piece) in pieces.iter().enumerate() {
            let id = ChunkId::new("docs", key, strategy, piece.content, piece.occurrence);
            is_pending |= !self.vectors.contains(&piece.content);
            self.chunks.push(Chunk {
                id: id.to_string(),
                pieces: Rc::clone(&pieces),
                number,
                lang: texts[2].to_owned(),
            });
        }
        self.pending += u64::from(is_pending);
    }

    pub fn rows(&self) -> BTreeSet<String> {
        self.rows.clone()
    }

    pub fn kept(&self) -> usize {
        self.kept
    }

    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// All visible chunks with their scores, best first, ties by id (API §3).
    pub fn search(&self, question: &str, lang: Option<&str>) -> Vec<(String, f64)> {
        let asked = terms(question);
        let query = self.timeline.embed(question);
        let n = self.chunks.len() as f64;
        let lengths = self.chunks.iter().map(|c| f64::from(c.piece().length));
        let average = lengths.sum::<f64>() / n.max(1.0);
        let idf = |term: &String| {
            let has = |c: &&Chunk| c.piece().terms.contains_key(term);
            let df = self.chunks.iter().filter(has).count() as f64;
            (1.0 + (n - df + 0.5) / (df + 0.5)).ln()
        };
        let weighted: Vec<(&String, f64)> = asked.iter().map(|term| (term, idf(term))).collect();
        let bound: f64 = weighted.iter().map(|(_, idf)| idf * 2.2).sum();
        let mut scored: Vec<(String, f64)> = self
            .chunks
            .iter()
            .filter(|chunk| lang.is_none_or(|lang| chunk.lang == lang))
            .map(|chunk| {
                let piece = chunk.piece();
                let length = f64::from(piece.length) / average;
                let bm25: f64 = weighted
                    .iter()
                    .map(|(term, idf)| {
                        let tf = f64::from(piece.terms.get(*term).copied().unwrap_or(0));
                        idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length))
                    })
                    .sum();
                let near = if self.vectors.contains(&piece.content) {
                    let vector = self.timeline.embed(&piece.text);
                    let cos: f64 = query
                        .iter()
                        .zip(vector.iter())
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum();
                    (1.0 + cos) / 2.0
                } else {
                    0.0
                };
                let said = if bound > 0.0 { bm25 / bound } else { 0.0 };
                (chunk.id.clone(), (2.0 * near + said) / 3.0)
            })
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        scored
    }

    /// The ids of the k best.
    pub fn retrieval_set(&self, question: &str, k: usize) -> BTreeSet<String> {
        self.search(question, None)
            .into_iter()
            .take(k)
            .map(|(id, _)| id)
            .collect()
    }

    /// Whether the k-th and the next are too close to call.
    pub fn is_near_tie(&self, question: &str, k: usize, epsilon: f64) -> bool {
        let scored = self.search(question, None);
        scored.len() > k && scored[k - 1].1 - scored[k].1 <= epsilon
    }
}
