//! Characters with their places on a page to words, lines and paragraphs.
//!
//! Idea: a PDF says where characters stand, not where words end. A gap along the line of a seventh of
//! their height is a blank, a step across it a new line, a step larger than the last one a new
//! paragraph, whichever way the page is turned.
//!
//! Limits: columns and tables follow the order of drawing; words that are cut at a line's end stay cut,
//! unless a soft hyphen cuts them.

/// Where a word may be cut.
const SOFT_HYPHEN: char = '\u{ad}';

/// `[a b c d e f]`: x' = a·x + c·y + e, y' = b·x + d·y + f.
#[derive(Clone, Copy)]
pub(super) struct Matrix(pub(super) [f64; 6]);

impl Matrix {
    pub(super) const ONE: Matrix = Matrix([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    pub(super) fn of(numbers: &[f64]) -> Option<Matrix> {
        numbers.try_into().ok().map(Matrix)
    }

    pub(super) fn shift(x: f64, y: f64) -> Matrix {
        Matrix([1.0, 0.0, 0.0, 1.0, x, y])
    }

    /// First this one, then the other.
    pub(super) fn then(self, other: Matrix) -> Matrix {
        let ([a, b, c, d, e, f], [p, q, r, s, t, u]) = (self.0, other.0);
        Matrix([
            a * p + b * r,
            a * q + b * s,
            c * p + d * r,
            c * q + d * s,
            e * p + f * r + t,
            e * q + f * s + u,
        ])
    }
}

/// Characters with their places to words, lines and paragraphs.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) out: String,
    /// Where the last characters ended, and the distance of their line from the one before.
    last: Option<(f64, f64)>,
    distance: f64,
}

impl Lines {
    /// Writes characters that are `size` high in text space.
    pub(super) fn write(&mut self, text: &str, from: Matrix, to: Matrix, size: f64) {
        let [a, b, c, d, x, y] = from.0;
        let length = (a * a + b * b).sqrt();
        let height = (size * (c * c + d * d).sqrt()).abs().max(f64::MIN_POSITIVE);
        if text.is_empty() || length == 0.0 {
            return;
        }
        if let Some((last_x, last_y)) = self.last {
            // Along the line and across it, whichever way the page is turned.
            let (dx, dy) = (x - last_x, y - last_y);
            let along = (dx * a + dy * b) / length;
            let across = ((dx * b - dy * a) / length).abs();
            if across > 0.5 * height {
                let is_far = across > 1.3 * self.distance.max(1.5 * height);
                // A soft hyphen at a line's end: the word goes on.
                if !is_far && self.out.ends_with(SOFT_HYPHEN) {
                    self.out.pop();
                } else {
                    self.end_line();
                }
                if is_far {
                    self.end_paragraph();
                }
                self.distance = across.min(3.0 * height);
            } else if along > 0.15 * height && !self.out.ends_with(char::is_whitespace) {
                self.settle();
                self.out.push(' ');
            } else if along < -2.0 * height {
                self.end_line();
            }
        }
        for character in text.chars() {
            match character {
                '\u{fb00}' => self.out.push_str("ff"),
                '\u{fb01}' => self.out.push_str("fi"),
                '\u{fb02}' => self.out.push_str("fl"),
                '\u{fb03}' => self.out.push_str("ffi"),
                '\u{fb04}' => self.out.push_str("ffl"),
                c if c.is_whitespace() => {
                    self.settle();
                    if !self.out.ends_with(char::is_whitespace) {
                        self.out.push(' ');
                    }
                }
                c if c.is_control() || matches!(c, '\u{fffd}' | '\u{200b}' | '\u{feff}') => {}
                c => {
                    self.settle();
                    self.out.push(c);
                }
            }
        }
        self.last = Some((to.0[4], to.0[5]));
    }

    /// A soft hyphen that is drawn within a line is a hyphen.
    fn settle(&mut self) {
        if self.out.ends_with(SOFT_HYPHEN) {
            self.out.pop();
            self.out.push('-');
        }
    }

    fn end_line(&mut self) {
        self.settle();
        let end = self.out.trim_end_matches(' ').len();
        self.out.truncate(end);
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
    }

    fn end_paragraph(&mut self) {
        self.end_line();
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    pub(super) fn end_page(&mut self) {
        self.end_paragraph();
        self.last = None;
        self.distance = 0.0;
    }

    pub(super) fn finish(mut self) -> String {
        self.settle();
        let end = self.out.trim_end().len();
        self.out.truncate(end);
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.out
    }
}
