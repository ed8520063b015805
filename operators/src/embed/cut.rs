//! Texts longer than a model's window: counted, and said once a model.
//!
//! A vector says nothing of what lies beyond the window. Chunks of an index are shorter, unless its
//! `CHUNK BY` says otherwise; questions and callers' texts may be any length.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::counter;

/// Counter: texts that were longer than the model's window, by `model`.
pub const TEXTS_CUT_TOTAL: &str = "headwater_embed_texts_cut_total";

/// See the module.
pub(super) struct Cuts {
    model: String,
    is_said: AtomicBool,
}

impl Cuts {
    pub(super) fn new(model: &str) -> Self {
        Cuts {
            model: model.to_owned(),
            is_said: AtomicBool::new(false),
        }
    }

    /// A text had more tokens than the model reads.
    pub(super) fn note(&self, max_tokens: usize) {
        counter!(TEXTS_CUT_TOTAL, "model" => self.model.clone()).increment(1);
        if !self.is_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                model = self.model,
                max_tokens,
                "a text is longer than the model's window, and its vector says nothing of the rest; \
                 CHUNK BY … (max_tokens => …) makes shorter ones ({TEXTS_CUT_TOTAL} counts them)"
            );
        }
    }
}
