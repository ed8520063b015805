//! How many requests a minute may be sent: a bucket of tokens that fills evenly.
//!
//! Documents wait until there is a token. Questions take one that is not there yet, up to a quarter
//! of a minute's worth; documents pay it back. So the mean rate is kept and a question rarely waits.
//! While documents wait every fourth token is theirs, however many questions come.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::limits::EMBED_DOCUMENT_SHARE;

/// See the module.
pub(super) struct Pace {
    per_second: f64,
    state: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
    /// Documents' requests that wait.
    documents: usize,
    /// Questions' requests since the last one of documents.
    questions: usize,
}

/// Longest pause of a question that lets a document go first.
const TURN: Duration = Duration::from_millis(20);

impl Pace {
    pub(super) fn new(per_minute: u32) -> Pace {
        let per_second = f64::from(per_minute.max(1)) / 60.0;
        let state = Mutex::new(Bucket {
            tokens: 1.0,
            at: Instant::now(),
            documents: 0,
            questions: 0,
        });
        Pace { per_second, state }
    }

    /// Waits for a request's turn.
    pub(super) fn take(&self, is_question: bool) {
        self.lock().documents += usize::from(!is_question);
        while let Some(wait) = self.wait(is_question, Instant::now()) {
            std::thread::sleep(wait);
        }
        self.lock().documents -= usize::from(!is_question);
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait at `now`; `None`: the request may go, and is counted.
    fn wait(&self, is_question: bool, now: Instant) -> Option<Duration> {
        let mut bucket = self.lock();
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        // Never more than a second's worth at once, or one.
        let most = self.per_second.max(1.0);
        bucket.tokens = (bucket.tokens + elapsed * self.per_second).min(most);
        bucket.at = bucket.at.max(now);
        let is_documents = bucket.documents > 0 && bucket.questions + 1 >= EMBED_DOCUMENT_SHARE;
        if is_question && is_documents {
            return Some(TURN.min(Duration::from_secs_f64(1.0 / self.per_second)));
        }
        let debt_max = if is_question || is_documents {
            self.per_second * 15.0
        } else {
            0.0
        };
        let lacks = 1.0 - (bucket.tokens + debt_max);
        // A nanosecond's rounding is no reason to wait.
        if lacks > 1e-9 {
            return Some(Duration::from_secs_f64(lacks / self.per_second));
        }
        bucket.tokens -= 1.0;
        bucket.questions = if is_question { bucket.questions + 1 } else { 0 };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn documents_keep_the_rate_and_questions_borrow() {
        let pace = Pace::new(60);
        let start = Instant::now() + SECOND;
        assert_eq!(pace.wait(false, start), None);
        assert_eq!(pace.wait(false, start), Some(SECOND));
        for _ in 0..15 {
            assert_eq!(pace.wait(true, start), None, "questions borrow");
        }
        assert_eq!(pace.wait(true, start), Some(SECOND), "up to a bound");
        assert_eq!(
            pace.wait(false, start),
            Some(16 * SECOND),
            "and documents pay"
        );
        assert_eq!(pace.wait(false, start + 16 * SECOND), None);
    }

    #[test]
    fn a_flood_of_questions_leaves_every_fourth_request_to_documents_that_wait() {
        let pace = Pace::new(60);
        let mut now = Instant::now() + SECOND;
        pace.lock().documents = 1;
        let mut sent = [0, 0];
        for _ in 0..400 {
            // The document asks first and last: it gets its share, and not more.
            for is_question in [false, true, true, true, true, false] {
                sent[usize::from(is_question)] +=
                    usize::from(pace.wait(is_question, now).is_none());
            }
            now += SECOND / 2;
        }
        let [documents, questions] = sent;
        assert!(
            (205..=220).contains(&(documents + questions)),
            "the rate: {sent:?}"
        );
        assert!((50..=60).contains(&documents), "a quarter: {sent:?}");
    }

    #[test]
    fn an_hour_of_silence_is_no_burst() {
        let pace = Pace::new(600);
        let later = Instant::now() + 3_600 * SECOND;
        let sent = (0..100)
            .filter(|_| pace.wait(false, later).is_none())
            .count();
        assert_eq!(sent, 10, "a second's worth");
    }
}
