//! What all workers of a process share: the declarations, resolved.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, RwLock};

use engine::contract::Embedder;
use engine::error::WorldError;
use engine::model::{
    ChunkId, ChunkPiece, ContentHash, DocVersion, Key, ModelId, ObjectId, Row, RowCodec, Schema,
    SqlType, Value, VectorRef,
};
use operators::chunk::{Chunker, ChunkingSpec, ModelTokens, TokenCounter, WordTokens};
use operators::index::{Analyzer, BuilderHandle, DocumentState, Quantization, ShardChunk};

use super::question::ProgramReply;
use crate::definition::{
    CacheDef, ChunkStrategy, Definition, IndexDef, ModelDef, Object, PasswordDef, SecretDef,
    SinkDef, ViewDef,
};
use crate::sql::{FilterProgram, RowProgram, filter_program, view_program};

/// Loads a model: from the weights of a declaration, and the place of its key, to an encoder.
pub type ModelLoader = dyn Fn(&str, &ModelDef, Option<&SecretDef>) -> Result<Arc<dyn Embedder>, WorldError>
    + Send
    + Sync;

/// Reads the bytes of stored vectors.
pub trait VectorBytes: Send + Sync {
    /// The vector; `None` only when the store lost it.
    fn get(&self, at: VectorRef) -> Option<Arc<[f32]>>;
    /// A vector of a tick, for processes that have no store of their own.
    fn note(&self, at: VectorRef, vector: &Arc<[f32]>);
}

/// A model, resolved.
#[derive(Clone)]
pub enum ModelKind {
    /// Texts become vectors here.
    Encoder(Arc<dyn Embedder>),
    /// Vectors arrive in a column.
    Column {
        /// Identity of the space: its name and dimensions.
        id: ModelId,
        /// Length of a vector.
        dimensions: usize,
    },
}

impl ModelKind {
    /// Identity.
    pub fn id(&self) -> ModelId {
        match self {
            ModelKind::Encoder(encoder) => encoder.id(),
            ModelKind::Column { id, .. } => *id,
        }
    }

    /// What embeds texts, if it does.
    pub fn encoder(&self) -> Option<&Arc<dyn Embedder>> {
        match self {
            ModelKind::Encoder(encoder) => Some(encoder),
            ModelKind::Column { .. } => None,
        }
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        match self {
            ModelKind::Encoder(encoder) => encoder.dimensions(),
            ModelKind::Column { dimensions, .. } => *dimensions,
        }
    }
}

/// An index, resolved: everything that turns a row into a document of its shards.
pub struct IndexSpec {
    /// Its object.
    pub object: Object,
    /// Its definition.
    pub definition: IndexDef,
    /// The relation's id.
    pub on: ObjectId,
    /// The model, with a vector leg.
    pub model: Option<ModelKind>,
    /// The analyzer.
    pub analyzer: Analyzer,
    /// How vectors are kept.
    pub quantization: Quantization,
    codec: Arc<RowCodec>,
    column: usize,
    include: Vec<usize>,
    include_codec: RowCodec,
    chunker: Chunker,
    memo: Arc<ChunkMemo>,
}

/// What is declared, resolved.
#[derive(Clone)]
pub enum Declared {
    /// A source.
    Source {
        /// Its object.
        object: Object,
        /// Its rows.
        codec: Arc<RowCodec>,
    },
    /// A view.
    View {
        /// Its object.
        object: Object,
        /// The relation that it reads.
        from: ObjectId,
        /// Its rows.
        codec: Arc<RowCodec>,
        /// Filter and projection.
        program: Arc<RowProgram>,
    },
    /// A secret or a connection: nothing is kept of it.
    Plain {
        /// Its object.
        object: Object,
    },
    /// A sink. Nothing is rendered for it: it asks.
    Sink {
        /// Its object.
        object: Object,
        /// Its definition.
        definition: Arc<SinkDef>,
        /// The relation that it writes.
        from: ObjectId,
        /// The relation's rows.
        codec: Arc<RowCodec>,
    },
    /// A model.
    Model {
        /// Its object.
        object: Object,
        /// What it is.
        model: ModelKind,
    },
    /// An index.
    Index(Arc<IndexSpec>),
    /// A cache.
    Cache {
        /// Its object.
        object: Object,
        /// Its definition.
        definition: CacheDef,
        /// The index whose answers it keeps.
        index: Arc<IndexSpec>,
    },
}

impl Declared {
    /// The object.
    pub fn object(&self) -> &Object {
        match self {
            Declared::Source { object, .. }
            | Declared::View { object, .. }
            | Declared::Model { object, .. }
            | Declared::Plain { object }
            | Declared::Sink { object, .. }
            | Declared::Cache { object, .. } => object,
            Declared::Index(index) => &index.object,
        }
    }

    /// The rows of a relation.
    pub fn codec(&self) -> Option<&Arc<RowCodec>> {
        match self {
            Declared::Source { codec, .. } | Declared::View { codec, .. } => Some(codec),
            _ => None,
        }
    }
}

/// Shared by all workers, the preparer and the service of one process.
pub struct Pipeline {
    objects: RwLock<BTreeMap<ObjectId, Declared>>,
    loader: Box<ModelLoader>,
    /// Builds graphs off the workers.
    pub builder: BuilderHandle,
    /// Vector bytes.
    pub vectors: Arc<dyn VectorBytes>,
    /// Where workers' replies go.
    pub replies: Arc<dyn Fn(ProgramReply) + Send + Sync>,
    memo: Arc<ChunkMemo>,
}

impl Pipeline {
    /// An empty pipeline.
    pub fn new(
        loader: Box<ModelLoader>,
        builder: BuilderHandle,
        vectors: Arc<dyn VectorBytes>,
        replies: Arc<dyn Fn(ProgramReply) + Send + Sync>,
    ) -> Self {
        let objects = RwLock::default();
        Pipeline {
            objects,
            loader,
            builder,
            vectors,
            replies,
            memo: Arc::default(),
        }
    }

    /// Resolves a declaration and remembers it. Idempotent by id. Loads the model of a `CREATE
    /// MODEL`, which may take long.
    pub fn register(&self, object: &Object) -> Result<Declared, WorldError> {
        if let Some(declared) = self.get(object.id) {
            return Ok(declared);
        }
        let declared = match &object.definition {
            Definition::Source(source) => Declared::Source {
                object: object.clone(),
                codec: codec(&source.schema),
            },
            Definition::Model(model) => {
                let model = match model {
                    ModelDef::Column { dimensions } => ModelKind::Column {
                        id: column_model_id(&object.name, *dimensions),
                        dimensions: *dimensions as usize,
                    },
                    other => {
                        let key = self.model_key(other);
                        ModelKind::Encoder((self.loader)(&object.name, other, key.as_ref())?)
                    }
                };
                Declared::Model {
                    object: object.clone(),
                    model,
                }
            }
            Definition::Secret(_) | Definition::Connection(_) => Declared::Plain {
                object: object.clone(),
            },
            Definition::Sink(sink) => {
                let from = self.by_name(&sink.from);
                let from = from.ok_or_else(|| missing(&sink.from))?;
                let codec = from.codec().ok_or_else(|| missing(&sink.from))?;
                Declared::Sink {
                    object: object.clone(),
                    definition: Arc::from((**sink).clone()),
                    from: from.object().id,
                    codec: Arc::clone(codec),
                }
            }
            Definition::View(view) => self.resolve_view(object, view)?,
            Definition::Index(index) => self.resolve_index(object, index)?,
            Definition::Cache(cache) => {
                let Some(Declared::Index(index)) = self.by_name(&cache.index) else {
                    return Err(missing(&cache.index));
                };
                Declared::Cache {
                    object: object.clone(),
                    definition: cache.clone(),
                    index,
                }
            }
        };
        let mut objects = self.objects.write().expect("no panic while held");
        objects.insert(object.id, declared.clone());
        Ok(declared)
    }

    /// Where a remote model's key is. A secret that is gone meanwhile is told when the key is wanted.
    fn model_key(&self, model: &ModelDef) -> Option<SecretDef> {
        let ModelDef::Remote(remote) = model else {
            return None;
        };
        Some(match remote.key.as_ref()? {
            PasswordDef::Env(variable) => SecretDef::Env(variable.clone()),
            PasswordDef::File(path) => SecretDef::File(path.clone()),
            PasswordDef::Secret(name) => match self.by_name(name)?.object().definition.clone() {
                Definition::Secret(secret) => secret,
                _ => return None,
            },
        })
    }

    /// Forgets a declaration.
    pub fn unregister(&self, id: ObjectId) {
        self.objects
            .write()
            .expect("no panic while held")
            .remove(&id);
    }

    /// A declaration by id.
    pub fn get(&self, id: ObjectId) -> Option<Declared> {
        self.objects
            .read()
            .expect("no panic while held")
            .get(&id)
            .cloned()
    }

    /// A declaration by name; the newest, while one that was replaced is still on its way out.
    pub fn by_name(&self, name: &str) -> Option<Declared> {
        let objects = self.objects.read().expect("no panic while held");
        objects
            .values()
            .rev()
            .find(|declared| declared.object().name == name)
            .cloned()
    }

    /// All declarations, in order of their ids.
    pub fn all(&self) -> Vec<Declared> {
        self.objects
            .read()
            .expect("no panic while held")
            .values()
            .cloned()
            .collect()
    }

    /// The indexes that read a relation, through views too, each with the programs that lead from
    /// the relation's rows to the index's.
    pub fn readers(&self, source: ObjectId) -> Vec<(Arc<IndexSpec>, Vec<Arc<RowProgram>>)> {
        let all = self.all();
        let mut out = Vec::new();
        for declared in &all {
            let Declared::Index(index) = declared else {
                continue;
            };
            let mut programs = Vec::new();
            let mut at = index.on;
            while at != source {
                let view = all.iter().find_map(|declared| match declared {
                    Declared::View {
                        object,
                        from,
                        program,
                        ..
                    } if object.id == at => Some((*from, Arc::clone(program))),
                    _ => None,
                });
                let Some((from, program)) = view else { break };
                programs.insert(0, program);
                at = from;
            }
            if at == source {
                out.push((Arc::clone(index), programs));
            }
        }
        out
    }

    fn resolve_view(&self, object: &Object, view: &ViewDef) -> Result<Declared, WorldError> {
        let from = self
            .by_name(&view.from)
            .ok_or_else(|| missing(&view.from))?;
        let input = from.codec().ok_or_else(|| missing(&view.from))?;
        let program =
            view_program(view, input.schema()).map_err(|problem| broken(object, &problem))?;
        Ok(Declared::View {
            object: object.clone(),
            from: from.object().id,
            codec: codec(&view.schema),
            program: Arc::new(program),
        })
    }

    fn resolve_index(&self, object: &Object, index: &IndexDef) -> Result<Declared, WorldError> {
        let on = self.by_name(&index.on).ok_or_else(|| missing(&index.on))?;
        let codec = Arc::clone(on.codec().ok_or_else(|| missing(&index.on))?);
        let model = match &index.model {
            None => None,
            Some(name) => match self.by_name(name) {
                Some(Declared::Model { model, .. }) => Some(model),
                _ => return Err(missing(name)),
            },
        };
        let position = |name: &str| codec.schema().position(name).ok_or_else(|| missing(name));
        let column = position(&index.column)?;
        let include: Vec<usize> = index
            .include
            .iter()
            .map(|name| position(name))
            .collect::<Result<_, _>>()?;
        let include_schema = Schema {
            columns: include
                .iter()
                .map(|i| codec.schema().columns[*i].clone())
                .collect(),
            key: Vec::new(),
        };
        let tokens: Arc<dyn TokenCounter> = match &model {
            Some(ModelKind::Encoder(encoder)) => Arc::new(ModelTokens(Arc::clone(encoder))),
            _ => Arc::new(WordTokens),
        };
        let spec = IndexSpec {
            object: object.clone(),
            on: on.object().id,
            analyzer: Analyzer::parse(&index.analyzer)
                .ok_or_else(|| missing(&format!("analyzer {}", index.analyzer)))?,
            quantization: match &*index.quantization {
                "f32" => Quantization::F32,
                _ => Quantization::Bf16,
            },
            column,
            include,
            include_codec: RowCodec::new(include_schema).expect("types were checked"),
            chunker: Chunker::new(&chunking(index), tokens),
            model,
            codec,
            definition: index.clone(),
            memo: Arc::clone(&self.memo),
        };
        Ok(Declared::Index(Arc::new(spec)))
    }
}

fn codec(schema: &Schema) -> Arc<RowCodec> {
    Arc::new(RowCodec::new(schema.clone()).expect("the language declares packable types only"))
}

fn column_model_id(name: &str, dimensions: u32) -> ModelId {
    ModelId(ContentHash::of(format!("column:{name}:{dimensions}").as_bytes()).0)
}

fn missing(name: &str) -> WorldError {
    WorldError::Service {
        service: "catalog".to_owned(),
        detail: format!("\"{name}\" is not declared"),
        is_transient: false,
    }
}

fn broken(object: &Object, problem: &crate::problem::Problem) -> WorldError {
    WorldError::Service {
        service: "catalog".to_owned(),
        detail: format!("\"{}\" cannot be planned again: {problem}", object.name),
        is_transient: false,
    }
}

/// The operators' form of a CHUNK BY clause.
pub fn chunking(index: &IndexDef) -> ChunkingSpec {
    use operators::chunk::ChunkStrategy as Strategy;
    ChunkingSpec {
        strategy: match index.chunking.strategy {
            ChunkStrategy::Markdown => Strategy::Markdown,
            ChunkStrategy::Recursive => Strategy::Recursive,
            ChunkStrategy::Fixed => Strategy::Fixed,
            ChunkStrategy::None => Strategy::None,
        },
        max_tokens: index.chunking.max_tokens,
        overlap: index.chunking.overlap,
        heading_prefix: index.chunking.heading_prefix,
    }
}

/// A row as an index reads it.
pub enum IndexedValue {
    /// NULL or blank: no chunk.
    Nothing,
    /// A text to cut.
    Text(Arc<str>),
    /// A vector of its own.
    Vector(Arc<[f32]>),
}

impl IndexSpec {
    /// The indexed column's value of a row, and the packed attributes.
    pub fn read(&self, row: &Row) -> (IndexedValue, Row) {
        let mut values = self.codec.unpack(row);
        let attributes: Vec<Value> = self.include.iter().map(|i| values[*i].clone()).collect();
        let attributes = self.include_codec.pack(&attributes);
        let value = match std::mem::replace(&mut values[self.column], Value::Null) {
            Value::Text(text) if !text.trim().is_empty() => IndexedValue::Text(text),
            Value::Vector(vector) => IndexedValue::Vector(vector),
            _ => IndexedValue::Nothing,
        };
        (value, attributes)
    }

    /// The chunks of a value: cut once, remembered for the dataflow.
    pub fn pieces(&self, value: &IndexedValue) -> Arc<[ChunkPiece]> {
        match value {
            IndexedValue::Nothing => Arc::from([]),
            IndexedValue::Vector(vector) => Arc::from([ChunkPiece {
                range: (0, 0),
                content: vector_content(vector),
                occurrence: 0,
                heading: Arc::from([]),
            }]),
            IndexedValue::Text(text) => {
                let hash = ContentHash::of(text.as_bytes());
                self.memo
                    .get_or_cut((self.object.id, hash), || self.cut(text))
            }
        }
    }

    /// With `headings => 'prefix'` the model sees more than the chunk's bytes: then the content hash
    /// is that of what it sees, or a renamed heading would keep a stale vector.
    fn cut(&self, text: &str) -> Arc<[ChunkPiece]> {
        let mut pieces = self.chunker.cut(text);
        if self.definition.chunking.heading_prefix {
            for piece in &mut pieces {
                let embedded = self.chunker.embedded_text(text, piece);
                piece.content = ContentHash::of(embedded.as_bytes());
            }
        }
        pieces.into()
    }

    /// The text that the model gets for a piece.
    pub fn embedded_text(&self, text: &str, piece: &ChunkPiece) -> String {
        self.chunker.embedded_text(text, piece).into_owned()
    }

    /// A document version as the shards keep it.
    pub fn document(&self, key: &Key, value: &DocVersion) -> Arc<DocumentState> {
        let (indexed, attributes) = self.read(&value.row);
        let pieces = self.pieces(&indexed);
        let strategy = self.chunker.strategy();
        let chunks = pieces.iter().map(|piece| ShardChunk {
            id: ChunkId::new(
                &self.definition.source,
                key,
                strategy,
                piece.content,
                piece.occurrence,
            ),
            piece: piece.clone(),
        });
        Arc::new(DocumentState {
            version: value.version,
            chunks: chunks.collect(),
            attributes,
            text: match indexed {
                IndexedValue::Text(text) => text,
                _ => Arc::from(""),
            },
        })
    }

    /// The included columns.
    pub fn include_schema(&self) -> &Schema {
        self.include_codec.schema()
    }

    /// Unpacks attributes.
    pub fn attributes(&self, row: &Row) -> Vec<Value> {
        self.include_codec.unpack(row)
    }

    /// Whether the indexed column holds vectors.
    pub fn is_vector_column(&self) -> bool {
        matches!(
            self.codec.schema().columns[self.column].sql_type,
            SqlType::Vector(_)
        )
    }

    /// Compiles a filter over the included columns.
    pub fn filter(
        &self,
        predicate: &str,
        params: &[serde_json::Value],
    ) -> Result<FilterProgram, crate::problem::Problem> {
        filter_program(predicate, params, self.include_schema())
    }
}

/// The content hash of a vector that arrived in a column.
pub fn vector_content(vector: &[f32]) -> ContentHash {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    ContentHash::of(&bytes)
}

/// Texts that were cut lately: prepared off the workers, used by the dataflow.
///
/// A memo only: results never depend on what it holds (PROTOCOLS §4.6).
#[derive(Default)]
pub struct ChunkMemo {
    inner: Mutex<Memo>,
}

#[derive(Default)]
struct Memo {
    pieces: HashMap<(ObjectId, ContentHash), Arc<[ChunkPiece]>>,
    order: VecDeque<(ObjectId, ContentHash)>,
}

impl ChunkMemo {
    const TEXTS_MAX: usize = 16_384;

    /// The pieces of a text, cut at most once while it is remembered.
    pub fn get_or_cut(
        &self,
        key: (ObjectId, ContentHash),
        cut: impl FnOnce() -> Arc<[ChunkPiece]>,
    ) -> Arc<[ChunkPiece]> {
        if let Some(pieces) = self
            .inner
            .lock()
            .expect("no panic while held")
            .pieces
            .get(&key)
        {
            return Arc::clone(pieces);
        }
        let pieces = cut();
        let mut inner = self.inner.lock().expect("no panic while held");
        if inner.pieces.insert(key, Arc::clone(&pieces)).is_none() {
            inner.order.push_back(key);
            if inner.order.len() > Self::TEXTS_MAX
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.pieces.remove(&oldest);
            }
        }
        pieces
    }
}
