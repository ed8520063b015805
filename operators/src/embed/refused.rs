//! Texts that a model refuses, so that none is offered again and again.
//!
//! A refused text is offered again after a minute, then ever later: a server may have been wrong, or
//! its limits may have grown. Meanwhile who asks gets the last refusal without a call.
//!
//! Limits: [`EMBED_REFUSED_MAX`] texts; the oldest is forgotten, and then offered like a new one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::contract::EmbedError;
use engine::limits::{EMBED_REFUSED_MAX, EMBED_REFUSED_RETRY_MS};
use engine::model::ContentHash;
use hashbrown::HashMap;

struct Refusal {
    error: EmbedError,
    retry_at: Instant,
    times: u32,
    /// Whether somebody was told that it may be offered again.
    is_told: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct RefusedTexts {
    texts: HashMap<ContentHash, Refusal>,
    order: VecDeque<ContentHash>,
}

impl RefusedTexts {
    /// Notes a refusal at `now`.
    pub(super) fn insert(&mut self, text: ContentHash, error: EmbedError, now: Instant) {
        let (first, longest) = EMBED_REFUSED_RETRY_MS;
        let times = self.texts.get(&text).map_or(0, |refusal| refusal.times);
        let wait = Duration::from_millis(first.saturating_mul(1 << times.min(20)).min(longest));
        let refusal = Refusal {
            error,
            retry_at: now + wait,
            times: times.saturating_add(1),
            is_told: false,
        };
        if self.texts.insert(text, refusal).is_none() {
            self.order.push_back(text);
        }
        while self.texts.len() > EMBED_REFUSED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.texts.remove(&oldest);
            }
        }
    }

    /// The last refusal of a text, until it may be offered again.
    pub(super) fn get(&self, text: ContentHash, now: Instant) -> Option<&EmbedError> {
        let refusal = self.texts.get(&text)?;
        (now < refusal.retry_at).then_some(&refusal.error)
    }

    /// The text was embedded after all.
    pub(super) fn remove(&mut self, text: ContentHash) {
        if self.texts.remove(&text).is_some() {
            self.order.retain(|other| *other != text);
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether one may be offered again; each is told of once.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let texts = self.texts.values_mut();
        let due = texts.filter(|refusal| now >= refusal.retry_at && !refusal.is_told);
        due.map(|refusal| refusal.is_told = true).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use engine::contract::EmbedFault;

    use super::*;

    fn error() -> EmbedError {
        EmbedError {
            model: "m".to_owned(),
            detail: "too long".to_owned(),
            fault: EmbedFault::Text,
        }
    }

    #[test]
    fn a_refused_text_rests_a_minute_then_two() {
        let (mut refused, start) = (RefusedTexts::default(), Instant::now());
        let text = ContentHash::of(b"text");
        let at = |seconds| start + Duration::from_secs(seconds);
        refused.insert(text, error(), start);
        assert_eq!(refused.get(text, at(59)), Some(&error()));
        assert!(!refused.take_due(at(59)));
        assert_eq!(refused.get(text, at(60)), None);
        assert!(refused.take_due(at(60)) && !refused.take_due(at(60)));
        refused.insert(text, error(), at(60));
        assert_eq!(refused.get(text, at(179)), Some(&error()));
        assert_eq!(refused.get(text, at(180)), None);
        refused.remove(text);
        assert_eq!((refused.len(), refused.take_due(at(9_999))), (0, false));
    }

    #[test]
    fn it_is_bounded() {
        let (mut refused, now) = (RefusedTexts::default(), Instant::now());
        let text = |n: usize| ContentHash::of(&n.to_le_bytes());
        (0..=EMBED_REFUSED_MAX).for_each(|n| refused.insert(text(n), error(), now));
        assert_eq!(refused.len(), EMBED_REFUSED_MAX);
        assert_eq!(refused.get(text(0), now), None, "the oldest is forgotten");
        assert!(refused.get(text(1), now).is_some());
    }
}
