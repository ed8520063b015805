//! A static model: files in, [`Embedder`] out. No transformer: the mean of tokens' vectors.
//!
//! ```text
//! text ─▶ token ids without special ones ─▶ rows of a table ─▶ sum at length 1
//! ```
//!
//! The cheap tier ([`kernels::statics`]): some hundred times as fast as an encoder, and good enough
//! beside keywords. Written by model2vec, whose unknown tokens are left out and which reads the first
//! 512 tokens, and by sentence-transformers, which does neither.
//!
//! Invariants: as [`super::model`]; the class of precision is `full`, whatever numbers the file has.
//! Limits: WordPiece tokenizers; texts of no known token have no vector and are refused.

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans};
use engine::error::WorldError;
use engine::model::ModelId;
use kernels::{Kernel, StaticEncoder};

use super::cut::Cuts;
use super::layout::{Kind, Layout};
use super::model::{LocalModel, max_tokens};
use super::shape::hashed_id;
use super::tokenizer::TextTokenizer;
use super::weights::ModelFolder;

/// Tokens that model2vec reads of a text.
const MODEL2VEC_TOKENS: usize = 512;
/// Tokens read of a text where nothing says how many: longer than any chunk.
const TOKENS_MAX: usize = 131_072;

/// See the module.
pub struct StaticEmbedder {
    id: ModelId,
    name: String,
    tokenizer: TextTokenizer,
    encoder: StaticEncoder,
    /// A token that is left out.
    left_out: Option<u32>,
    cuts: Cuts,
}

impl StaticEmbedder {
    /// Reads and checks a folder's files.
    ///
    /// Errors: a file cannot be read or understood, tokenizer and table do not belong together, or a
    /// precision that a table does not have.
    pub(super) fn read(
        folder: &ModelFolder,
        layout: &Layout,
        kernel: Kernel,
    ) -> Result<Self, WorldError> {
        let corrupt = |file: &str, detail: String| WorldError::Corrupt {
            path: folder.path.join(layout.file(file)).display().to_string(),
            offset: 0,
            detail,
        };
        let read = |file: &str| {
            let path = folder.path.join(layout.file(file));
            std::fs::read(&path).map_err(|e| WorldError::io("cannot read", &path, e))
        };
        if kernel != Kernel::F32 {
            return Err(WorldError::Service {
                service: format!("model '{}'", folder.name),
                detail: format!(
                    "PRECISION '{}' is for encoders, and this is a table of tokens' vectors; \
                     expected 'full' or 'f32'",
                    kernel.name()
                ),
                is_transient: false,
            });
        }
        let is_model2vec = layout.kind == Kind::Static { is_model2vec: true };
        let fallback = if is_model2vec {
            MODEL2VEC_TOKENS
        } else {
            TOKENS_MAX
        };
        let max_tokens = max_tokens(&folder.path)
            .map_err(|e| corrupt("sentence_bert_config.json", e))?
            .unwrap_or(fallback)
            .min(TOKENS_MAX);
        let (json, weights) = (read("tokenizer.json")?, read("model.safetensors")?);
        let encoder = StaticEncoder::parse(&weights)
            .map_err(|e| corrupt("model.safetensors", e.to_string()))?;
        let tokenizer = TextTokenizer::parse_bare(&json, max_tokens)
            .map_err(|e| corrupt("tokenizer.json", e))?;
        if tokenizer.vocabulary() > encoder.vocabulary() {
            let (tokens, rows) = (tokenizer.vocabulary(), encoder.vocabulary());
            let detail = format!("it has {tokens} tokens, the weights only {rows}");
            return Err(corrupt("tokenizer.json", detail));
        }
        let settings = format!("static full {is_model2vec} {max_tokens}");
        Ok(StaticEmbedder {
            id: hashed_id(&[settings.as_bytes(), &json, &weights]),
            name: folder.name.clone(),
            left_out: is_model2vec.then(|| tokenizer.unknown()),
            tokenizer,
            encoder,
            cuts: Cuts::new(&folder.name),
        })
    }

    fn one(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let mut ids = Vec::new();
        if self.tokenizer.ids_into(text, &mut ids).is_cut {
            self.cuts.note(self.tokenizer.max_tokens());
        }
        ids.retain(|id| Some(*id) != self.left_out);
        let vector = self.encoder.encode(&ids);
        // No token, tokens of zeros, or tokens that cancel out.
        if vector.iter().all(|x| *x == 0.0) {
            return Err(EmbedError {
                model: self.name.clone(),
                detail: "the text has no token that the model knows".to_owned(),
                fault: EmbedFault::Text,
            });
        }
        Ok(vector)
    }
}

impl LocalModel for StaticEmbedder {
    fn token_ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.ids(text)
    }

    fn operations(&self, _tokens: usize) -> Option<f64> {
        None
    }
}

impl Embedder for StaticEmbedder {
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
        0
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        self.tokenizer.spans(text)
    }

    fn call_limits(&self) -> CallLimits {
        CallLimits::LOCAL
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        texts.iter().map(|text| self.one(text)).collect()
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.embed(texts)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::testing::embedder_laws;

    use super::super::model::local;
    use super::*;

    const TOKENS: [&str; 8] = [
        "[UNK]", "[CLS]", "[SEP]", "reset", "the", "second", "factor", "##s",
    ];

    /// A model with one-hot vectors of its tokens; `[UNK]` has one too.
    fn write(folder: &Path, base: &str, vocabulary: usize) {
        let base = folder.join(base);
        std::fs::create_dir_all(&base).unwrap();
        let vocab: Vec<String> = TOKENS[..vocabulary.min(8)]
            .iter()
            .enumerate()
            .map(|(id, token)| format!("\"{token}\":{id}"))
            .collect();
        let json = format!(
            r###"{{"version":"1.0","added_tokens":[],
            "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,
                "strip_accents":null,"lowercase":true}},
            "pre_tokenizer":{{"type":"BertPreTokenizer"}},
            "post_processor":{{"type":"BertProcessing","cls":["[CLS]",1],"sep":["[SEP]",2]}},
            "model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
                "max_input_chars_per_word":100,"vocab":{{{}}}}}}}"###,
            vocab.join(",")
        );
        std::fs::write(base.join("tokenizer.json"), json).unwrap();
        let header = br#"{"embeddings":{"dtype":"F32","shape":[8,8],"data_offsets":[0,256]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        for at in 0..64 {
            let x = f32::from(u8::from(at % 9 == 0));
            bytes.extend_from_slice(&x.to_le_bytes());
        }
        std::fs::write(base.join("model.safetensors"), bytes).unwrap();
    }

    fn model2vec(folder: &Path) -> ModelFolder {
        write(folder, "", 8);
        std::fs::write(folder.join("config.json"), r#"{"model_type":"model2vec"}"#).unwrap();
        of(folder)
    }

    fn of(folder: &Path) -> ModelFolder {
        ModelFolder {
            name: "org/static".to_owned(),
            path: folder.to_owned(),
            origin: String::new(),
        }
    }

    fn open(folder: &ModelFolder) -> std::sync::Arc<dyn LocalModel> {
        local(folder, Kernel::F32).unwrap().model
    }

    #[test]
    fn model2vec_leaves_unknown_tokens_out_and_sentence_transformers_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let model = open(&model2vec(folder.path()));
        let half = 0.5_f32.sqrt();
        let mut expected = vec![0.0; 8];
        (expected[3], expected[6]) = (half, half);
        let vectors = model.embed(&["Reset, factor!"]).unwrap();
        assert_eq!(vectors, [expected]);
        assert_eq!(model.token_ids("reset factors"), [3, 6, 7]);
        assert_eq!((model.special_tokens(), model.max_tokens()), (0, 512));

        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "0_StaticEmbedding", 8);
        let modules = r#"[{"path":"0_StaticEmbedding","type":"a.StaticEmbedding"}]"#;
        std::fs::write(folder.path().join("modules.json"), modules).unwrap();
        let other = open(&of(folder.path()));
        let vector = &other.embed(&["reset ? reset"]).unwrap()[0];
        assert!(vector[0] > 0.0 && vector[3] > vector[0]);
        assert_ne!(other.id(), model.id());
        assert_eq!(other.max_tokens(), TOKENS_MAX);
    }

    #[test]
    fn the_laws_hold() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "0_S", 8);
        let modules = r#"[{"path":"0_S","type":"a.StaticEmbedding"}]"#;
        std::fs::write(folder.path().join("modules.json"), modules).unwrap();
        // A prompt, because a text without any token has no vector.
        let local = local(&of(folder.path()), Kernel::F32).unwrap();
        let prompts = super::super::shape::Prompts {
            query: "the ".to_owned(),
            document: "the ".to_owned(),
        };
        embedder_laws(&*super::super::shape::shaped(local.model, prompts, None).unwrap());
    }

    #[test]
    fn what_cannot_be_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let at = model2vec(folder.path());
        let error = open(&at).embed(&["?!"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model org/static: the text has no token that the model knows"
        );
        assert_eq!(error.fault, EmbedFault::Text);
        let refused = |kernel| local(&at, kernel).err().unwrap().to_string();
        assert_eq!(
            refused(Kernel::Int8),
            "model 'org/static': PRECISION 'int8' is for encoders, and this is a table of tokens' \
             vectors; expected 'full' or 'f32'"
        );
        let json = folder.path().join("tokenizer.json");
        let more = std::fs::read_to_string(&json).unwrap();
        std::fs::write(&json, more.replace("\"##s\":7", "\"##s\":7,\"more\":8")).unwrap();
        let error = refused(Kernel::F32);
        assert!(
            error.ends_with("it has 9 tokens, the weights only 8"),
            "{error}"
        );
    }
}
