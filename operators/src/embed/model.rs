//! A pretrained encoder: files in, [`Embedder`] out.
//!
//! ```text
//! ModelFolder ─┬─▶ ModelFiles (bytes + settings) ─▶ PretrainedEmbedder { TextTokenizer, kernels::Encoder }
//!              └─▶ StaticEmbedder (see `static_model`)
//! ```
//!
//! Invariants: the id hashes weights, tokenizer, configuration, pooling, maximum length and precision
//! class (prompts and a shorter length come with [`super::shape`]), never the device or the folder;
//! working memory is kept per concurrent caller, so `embed` may be called from several threads.
//! Limits: BERT-family encoders, mean or CLS pooling.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans};
use engine::error::WorldError;
use engine::model::ModelId;
use kernels::cuda::choose::Wanted;
use kernels::{BertConfig, Encoder, Kernel, Pooling, Scratch, Weights};
use serde::Deserialize;

use super::cut::Cuts;
use super::download::{ProgressFn, hex};
use super::gpu;
use super::layout::{self, Kind, Layout, optional};
use super::shape::{Prompts, Shape, prompts_of, shaped};
use super::static_model::StaticEmbedder;
use super::tokenizer::TextTokenizer;
use super::weights::{ModelFolder, pins, pull_in};

/// Finds, fetches and loads a model: a path, or a name as on the hub.
///
/// `device` is `auto`, `cpu` or `cuda:0` ([`super::gpu`]), `precision` a name of [`Kernel::for_precision`]; others
/// are refused by name. Cost: reading and hashing the weights, about 0.2 s for 90 MB, after the fetch.
pub fn load(
    location: &str,
    device: &str,
    precision: &str,
    shape: &Shape,
    progress: ProgressFn<'_>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    load_in(None, location, device, precision, shape, progress)
}

/// [`load`] with a model folder of one's own.
pub fn load_in(
    models: Option<&Path>,
    location: &str,
    device: &str,
    precision: &str,
    shape: &Shape,
    progress: ProgressFn<'_>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    let folder = pull_in(models, location, progress)?;
    let Local { model, prompts, .. } = placed(&folder, device, precision)?;
    shaped(model, shape.prompts(prompts), shape.dimensions)
}

/// Loads what lies in a folder where a declaration wants it.
///
/// Errors: as [`local`]; or the device is not there, or has nothing for this model.
pub fn placed(folder: &ModelFolder, device: &str, precision: &str) -> Result<Local, WorldError> {
    let refuse = |detail: String| WorldError::Service {
        service: format!("model '{}'", folder.name),
        detail,
        is_transient: false,
    };
    let wanted = Wanted::parse(device).map_err(refuse)?;
    let kernel = Kernel::for_precision(precision).map_err(|_| {
        refuse(format!(
            "PRECISION '{precision}' is not supported by this version; \
             expected 'full', 'f32', 'bf16' or 'int8'"
        ))
    })?;
    let is_encoder = Layout::of(&folder.path).is_ok_and(|layout| layout.kind == Kind::Encoder);
    let is_for_devices = is_encoder && matches!(precision, "full" | "int8");
    match (&wanted, is_for_devices) {
        (Wanted::Auto | Wanted::Cuda(_), true) => {
            let files = ModelFiles::read(folder)?;
            let prompts = files.prompts.clone();
            let (model, why_cpu): (Arc<dyn LocalModel>, _) =
                match gpu::place(files, &wanted, kernel)? {
                    gpu::Placed::Gpu(model) => (Arc::new(model), None),
                    gpu::Placed::Cpu(model, reason) => {
                        tracing::info!(model = folder.name, reason, "the CPU embeds");
                        (model, Some(reason))
                    }
                };
            Ok(Local {
                model,
                prompts,
                why_cpu,
            })
        }
        (Wanted::Cuda(_), false) => Err(refuse(format!(
            "DEVICE '{device}' is for encoders with PRECISION 'full' (fp16 there) or 'int8'; expected 'auto' or 'cpu'"
        ))),
        (wanted, _) => {
            let why_cpu = match wanted {
                Wanted::Cpu => None,
                _ if !is_encoder => Some("a static model has nothing for a device".to_owned()),
                _ => Some(format!("PRECISION '{precision}' is the CPU's")),
            };
            Ok(Local {
                why_cpu,
                ..local(folder, kernel)?
            })
        }
    }
}

/// A model that runs in this process.
pub trait LocalModel: Embedder {
    /// The token ids that the model sees for a text, special tokens included.
    fn token_ids(&self, text: &str) -> Vec<u32>;
    /// Operations of the matrix products of a text of so many tokens; `None`: it has none.
    fn operations(&self, tokens: usize) -> Option<f64>;
    /// What it runs on, a line each, with the stage of its kernels; none: the CPU.
    fn devices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A model of this machine, and the prompts that its makers want in front of texts.
pub struct Local {
    /// Without prompts.
    pub model: Arc<dyn LocalModel>,
    /// See [`shaped`].
    pub prompts: Prompts,
    /// Why no device has it, where one was asked for.
    pub why_cpu: Option<String>,
}

/// Loads what lies in a folder: an encoder, or a static model.
///
/// Errors: a file cannot be read or understood, or a precision that the model does not have.
pub fn local(folder: &ModelFolder, kernel: Kernel) -> Result<Local, WorldError> {
    let corrupt = |file: &str, detail: String| WorldError::Corrupt {
        path: folder.path.join(file).display().to_string(),
        offset: 0,
        detail,
    };
    let layout = Layout::of(&folder.path).map_err(|e| corrupt("", e))?;
    if let Kind::Static { .. } = layout.kind {
        modules(&folder.path, &["StaticEmbedding", "Normalize"])
            .map_err(|e| corrupt("modules.json", e))?;
        let prompts = prompts_of(&folder.name, &folder.path)
            .map_err(|e| corrupt("config_sentence_transformers.json", e))?;
        let model = Arc::new(StaticEmbedder::read(folder, &layout, kernel)?);
        return Ok(Local {
            model,
            prompts,
            why_cpu: None,
        });
    }
    let files = ModelFiles::read(folder)?;
    let prompts = files.prompts.clone();
    let model = Arc::new(PretrainedEmbedder::with_kernel(files, kernel)?);
    Ok(Local {
        model,
        prompts,
        why_cpu: None,
    })
}

/// A model's files, read and with their settings understood, before anything is packed.
pub struct ModelFiles {
    /// For messages.
    pub name: String,
    /// `config.json`.
    pub config: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
    /// How token states become a vector.
    pub pooling: Pooling,
    /// The longest sequence, special tokens included, if the model says so.
    pub max_tokens: Option<usize>,
    /// What its makers put in front of texts. [`PretrainedEmbedder`] does not: see [`shaped`].
    pub prompts: Prompts,
}

impl ModelFiles {
    /// Reads a folder. The default model's checksums are held against the pinned ones.
    pub fn read(folder: &ModelFolder) -> Result<Self, WorldError> {
        let read = |file: &str| {
            let path = folder.path.join(file);
            std::fs::read(&path).map_err(|e| WorldError::io("cannot read", &path, e))
        };
        let corrupt = |file: &str, detail: String| WorldError::Corrupt {
            path: folder.path.join(file).display().to_string(),
            offset: 0,
            detail,
        };
        modules(&folder.path, &["Transformer", "Pooling", "Normalize"])
            .map_err(|e| corrupt("modules.json", e))?;
        let files = ModelFiles {
            name: folder.name.clone(),
            config: read("config.json")?,
            tokenizer: read("tokenizer.json")?,
            weights: read("model.safetensors")?,
            pooling: pooling(&folder.path).map_err(|e| corrupt("1_Pooling/config.json", e))?,
            max_tokens: max_tokens(&folder.path)
                .map_err(|e| corrupt("sentence_bert_config.json", e))?,
            prompts: prompts_of(&folder.name, &folder.path)
                .map_err(|e| corrupt("config_sentence_transformers.json", e))?,
        };
        for (file, expected) in pins(&folder.name) {
            let bytes = if *file == "tokenizer.json" {
                &files.tokenizer
            } else {
                &files.weights
            };
            let found = hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
            if found != *expected {
                return Err(corrupt(
                    file,
                    format!(
                        "SHA-256 is {found}, expected {expected}; remove the folder and pull again"
                    ),
                ));
            }
        }
        Ok(files)
    }
}

/// The modules of sentence-transformers must be known: another one (a dense layer) would shape vectors.
fn modules(folder: &Path, known: &[&str]) -> Result<(), String> {
    for (n, module) in layout::modules(folder)?.iter().enumerate() {
        if !known.contains(&module.name()) {
            return Err(format!(
                "module {n} is '{}', expected one of {}",
                module.kind,
                known.join(", ")
            ));
        }
    }
    Ok(())
}

fn pooling(folder: &Path) -> Result<Pooling, String> {
    let file: Option<serde_json::Map<String, serde_json::Value>> =
        optional(folder, "1_Pooling/config.json")?;
    let Some(file) = file else {
        return Ok(Pooling::Mean);
    };
    let modes = file.iter().filter(|(name, is_set)| {
        name.starts_with("pooling_mode_") && **is_set == serde_json::Value::Bool(true)
    });
    let modes: Vec<&str> = modes.map(|(name, _)| &**name).collect();
    match *modes {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        _ => Err(format!(
            "pooling is [{}], expected pooling_mode_mean_tokens or pooling_mode_cls_token alone",
            modes.join(", ")
        )),
    }
}

/// The window that sentence-transformers' settings say.
pub(super) fn max_tokens(folder: &Path) -> Result<Option<usize>, String> {
    #[derive(Deserialize)]
    struct File {
        max_seq_length: Option<usize>,
    }
    let file: Option<File> = optional(folder, "sentence_bert_config.json")?;
    Ok(file.and_then(|f| f.max_seq_length))
}

/// A transformer encoder with its tokenizer, on the CPU.
pub struct PretrainedEmbedder {
    id: ModelId,
    name: String,
    tokenizer: TextTokenizer,
    encoder: Encoder,
    /// Its shape.
    config: BertConfig,
    cuts: Cuts,
    /// Working memory not in use; as many as were ever used at once.
    scratch: Mutex<Vec<Scratch>>,
}

impl PretrainedEmbedder {
    /// Checks and packs a model's files for full precision.
    pub fn new(files: ModelFiles) -> Result<Self, WorldError> {
        Self::with_kernel(files, Kernel::F32)
    }

    /// Checks and packs a model's files for a kernel.
    pub fn with_kernel(files: ModelFiles, kernel: Kernel) -> Result<Self, WorldError> {
        let corrupt = |detail: String| WorldError::Corrupt {
            path: format!("model '{}'", files.name),
            offset: 0,
            detail,
        };
        let weights =
            Weights::parse(&files.config, &files.weights).map_err(|e| corrupt(e.to_string()))?;
        let positions = weights.config.max_position_embeddings;
        let max_tokens = files.max_tokens.unwrap_or(positions).min(positions);
        let tokenizer = TextTokenizer::parse(&files.tokenizer, max_tokens)
            .map_err(|e| corrupt(format!("tokenizer.json: {e}")))?;
        let config = weights.config.clone();
        let encoder = Encoder::with_kernel(weights, files.pooling, kernel);
        belongs(tokenizer.vocabulary(), encoder.vocabulary()).map_err(corrupt)?;
        let id = model_id(&files, max_tokens, kernel);
        Ok(PretrainedEmbedder {
            id,
            cuts: Cuts::new(&files.name),
            name: files.name,
            tokenizer,
            encoder,
            config,
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// Its arithmetic.
    pub fn kernel(&self) -> Kernel {
        self.encoder.kernel()
    }

    /// The shape of its layers.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The sequence that the encoder sees for a text. Fails on one of no tokens: a tokenizer without
    /// special tokens, and a text of characters that it drops.
    pub(super) fn sequence(&self, text: &str) -> Result<Vec<u32>, EmbedError> {
        let mut ids = Vec::new();
        if self.tokenizer.ids_into(text, &mut ids).is_cut {
            self.cuts.note(self.tokenizer.max_tokens());
        }
        if ids.is_empty() {
            return Err(EmbedError {
                model: self.name.clone(),
                detail: "the text has no tokens".to_owned(),
                fault: EmbedFault::Text,
            });
        }
        Ok(ids)
    }

    /// The vector of a sequence, on the calling thread. Panics on an id outside the vocabulary.
    pub fn encode(&self, ids: &[u32]) -> Vec<f32> {
        let pool = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let vector = self.encoder.encode(ids, &mut scratch);
        pool().push(scratch);
        vector
    }

    /// Bytes held for weights, vocabulary and working memory.
    pub fn resident_bytes(&self) -> usize {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.encoder.resident_bytes()
            + self.tokenizer.resident_bytes()
            + scratch.iter().map(Scratch::resident_bytes).sum::<usize>()
    }
}

/// Rows that a table of embeddings may have beside its tokens: trainers pad it to a multiple of at most 128.
const PADDING_ROWS: usize = 128;

/// Whether a tokenizer's tokens are those of a table of so many rows, as far as counts can tell.
fn belongs(tokens: usize, rows: usize) -> Result<(), String> {
    if tokens > rows {
        return Err(format!(
            "tokenizer.json has {tokens} tokens, config.json's vocab_size and the weights only {rows}: \
             it is another model's"
        ));
    }
    if rows - tokens >= PADDING_ROWS {
        return Err(format!(
            "tokenizer.json has {tokens} tokens, config.json's vocab_size and the weights {rows}, \
             expected fewer than {PADDING_ROWS} more (padding): it is another model's"
        ));
    }
    Ok(())
}

/// Everything that shapes a vector, and nothing that does not. Of precision its class: vectors of f32 and
/// bf16 rank alike and may stand beside each other, those of int8 not.
fn model_id(files: &ModelFiles, max_tokens: usize, kernel: Kernel) -> ModelId {
    let mut hasher = blake3::Hasher::new();
    let class = match kernel {
        Kernel::F32 | Kernel::Bf16 => "full",
        Kernel::Int8 => "int8",
    };
    let settings = format!("{class} {:?} {max_tokens}", files.pooling);
    for part in [
        &files.config[..],
        &files.tokenizer,
        &files.weights,
        settings.as_bytes(),
    ] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ModelId(id)
}

impl LocalModel for PretrainedEmbedder {
    fn token_ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.ids(text)
    }

    /// Four square products and the two of the feed-forward part a token and layer, and attention's two
    /// a pair of tokens.
    fn operations(&self, tokens: usize) -> Option<f64> {
        let (hidden, inner) = (
            self.config.hidden_size as f64,
            self.config.intermediate_size as f64,
        );
        let (layers, tokens) = (self.config.num_hidden_layers as f64, tokens as f64);
        let weights = 2.0 * (4.0 * hidden * hidden + 2.0 * hidden * inner);
        Some(layers * tokens * (weights + 4.0 * tokens * hidden))
    }
}

impl Embedder for PretrainedEmbedder {
    fn id(&self) -> ModelId {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.encoder.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.tokenizer.max_tokens()
    }

    fn special_tokens(&self) -> usize {
        self.tokenizer.special_tokens()
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        self.tokenizer.spans(text)
    }

    fn call_limits(&self) -> CallLimits {
        // One text at a time goes through all layers: a call of several gains nothing, and a question
        // would wait for its end.
        CallLimits {
            texts: 1,
            ..CallLimits::LOCAL
        }
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.embed(texts)
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let one = |text: &&str| Ok(self.encode(&self.sequence(text)?));
        texts.iter().map(one).collect()
    }
}
