//! The second gate.

/// What the gate compares of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    normalised: String,
}

impl Features {
    /// Reads a question.
    pub fn of(text: &str) -> Features {
        let normalised = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        Features { normalised: normalised.trim_end_matches(['?', '!', '.', ' ']).to_owned() }
    }

    /// Lower case, single spaces, no final punctuation: equal for the same question.
    pub fn normalised(&self) -> &str {
        &self.normalised
    }

    /// Whether two similar questions may share an answer; else why not, in short.
    pub fn agrees(&self, _other: &Features) -> Result<(), String> {
        Ok(())
    }
}
