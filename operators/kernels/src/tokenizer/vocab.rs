//! The vocabulary: strings with ids, and the longest one that a text begins with.
//!
//! The idea: a *double-array trie* (Aoe 1989). Node `n`'s child by byte `b` lies at
//! `base[n] + b` and is its child only if it says so (`parent`): one step is one load.
//!
//! ```text
//! "un", "una"        nodes: … │ base │ parent │ value │ …
//! root ─u─▶ 5 ─n─▶ 9 (value: id of "un") ─a─▶ 12 (value: id of "una")
//!           base[root] + 'u' = 5        base[9] + 'a' = 12, parent[12] = 9
//! ```
//!
//! Invariants: bytes of a UTF-8 string that match a UTF-8 string end on a character's boundary, so
//! the walk needs no characters. Limits: ids below 2³¹; about 12 bytes a node.

/// No id, no parent.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    /// Where the children's places begin; child `b` lies at `base + b`.
    base: u32,
    /// The parent's place; [`NONE`] where no node lies.
    parent: u32,
    /// The id of the string that ends here, or [`NONE`].
    value: u32,
}

const FREE: Node = Node {
    base: 0,
    parent: NONE,
    value: NONE,
};

/// Strings with ids, read from their beginnings. Empty strings are left out.
pub(super) struct Trie {
    nodes: Vec<Node>,
}

impl Trie {
    /// Builds the trie. Of equal strings the last one counts. Cost: linear, about 10 ms for 30,000 strings.
    pub(super) fn new<'a>(strings: impl IntoIterator<Item = (&'a [u8], u32)>) -> Self {
        let mut strings: Vec<(&[u8], u32)> = strings
            .into_iter()
            .filter(|(string, _)| !string.is_empty())
            .collect();
        // Stable, so that of equal strings the last one is written last.
        strings.sort_by_key(|&(string, _)| string);
        let mut builder = Builder {
            nodes: vec![FREE; 256],
            cursors: [1; 16],
        };
        // The root is its own parent: its place is taken, and it is nobody's child.
        builder.nodes[0].parent = 0;
        let mut open = vec![(0, 0, 0, strings.len())];
        let mut labels = Vec::new();
        while let Some((node, depth, from, to)) = open.pop() {
            let mut inner = from;
            while inner < to && strings[inner].0.len() == depth {
                builder.nodes[node].value = strings[inner].1;
                inner += 1;
            }
            labels.clear();
            let mut at = inner;
            while at < to {
                let label = strings[at].0[depth];
                let same = strings[at..to].partition_point(|(string, _)| string[depth] == label);
                labels.push((label, at, at + same));
                at += same;
            }
            let base = builder.place(&labels);
            for &(label, from, to) in &labels {
                let child = base + usize::from(label);
                builder.nodes[node].base = base as u32;
                builder.nodes[child].parent = node as u32;
                open.push((child, depth + 1, from, to));
            }
        }
        Trie {
            nodes: builder.nodes,
        }
    }

    /// The longest string that `bytes` begin with: its length and its id.
    #[inline]
    pub(super) fn longest(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let mut at = 0;
        let mut node = self.nodes[0];
        let mut found = None;
        for (i, &byte) in bytes.iter().enumerate() {
            let next = node.base as usize + usize::from(byte);
            match self.nodes.get(next) {
                // The root's place is 0 and it names itself: it is no child of its own.
                Some(&child) if child.parent as usize == at && next != 0 => {
                    (at, node) = (next, child);
                    if child.value != NONE {
                        found = Some((i + 1, child.value));
                    }
                }
                _ => break,
            }
        }
        found
    }

    /// Bytes held.
    pub(super) fn resident_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }
}

struct Builder {
    nodes: Vec<Node>,
    /// Where nodes with so many children look for places: never back, so that building is linear.
    /// What many children leave free is filled by those that are alone.
    cursors: [usize; 16],
}

impl Builder {
    /// A base that puts all labels (sorted) on free places; makes room behind the last one.
    fn place(&mut self, labels: &[(u8, usize, usize)]) -> usize {
        let Some(&(first, ..)) = labels.first() else {
            return 0;
        };
        let first = usize::from(first);
        let cursor = labels.len().min(self.cursors.len()) - 1;
        let mut at = self.cursors[cursor].max(first + 1);
        loop {
            if self.nodes.len() < at + 256 {
                self.nodes.resize(at + 512, FREE);
            }
            let is_free = |&(label, ..): &(u8, usize, usize)| {
                self.nodes[at - first + usize::from(label)].parent == NONE
            };
            if labels.iter().all(is_free) {
                self.cursors[cursor] = at;
                return at - first;
            }
            at += 1;
        }
    }
}

/// WordPiece over two tries: what a word begins with, and what goes on inside it.
pub(super) struct Vocabulary {
    begin: Trie,
    inside: Trie,
    /// Bytes of each id's string within a word, the prefix of inner pieces left out: for spans.
    lengths: Vec<u32>,
    /// Bytes of the prefix of inner pieces.
    prefix: usize,
    unknown: u32,
    word_chars_max: usize,
}

impl Vocabulary {
    /// `prefix` marks strings that go on inside a word (`##`).
    pub(super) fn new(
        tokens: &[(String, u32)],
        prefix: &str,
        unknown: u32,
        word_chars_max: usize,
    ) -> Self {
        let above = tokens.iter().map(|&(_, id)| id as usize + 1).max();
        let mut lengths = vec![0; above.unwrap_or(0)];
        for (token, id) in tokens {
            lengths[*id as usize] = token.len() as u32;
        }
        let begin = Trie::new(tokens.iter().map(|(token, id)| (token.as_bytes(), *id)));
        let inside = Trie::new(
            tokens
                .iter()
                .filter_map(|(token, id)| Some((token.strip_prefix(prefix)?.as_bytes(), *id))),
        );
        Vocabulary {
            begin,
            inside,
            lengths,
            prefix: prefix.len(),
            unknown,
            word_chars_max,
        }
    }

    /// The id of words that cannot be put together.
    pub(super) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Every id is below.
    pub(super) fn ids(&self) -> usize {
        self.lengths.len()
    }

    /// Greedy longest match: a word's pieces, or the unknown token alone.
    pub(super) fn pieces(&self, word: &[u8], out: &mut Vec<u32>) {
        out.clear();
        // Characters are the bytes that are not continuations.
        let is_long = word.len() > self.word_chars_max
            && word.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() > self.word_chars_max;
        if is_long {
            out.push(self.unknown);
            return;
        }
        let mut rest = word;
        let mut trie = &self.begin;
        while !rest.is_empty() {
            let Some((length, id)) = trie.longest(rest) else {
                out.clear();
                out.push(self.unknown);
                return;
            };
            out.push(id);
            rest = &rest[length..];
            trie = &self.inside;
        }
    }

    /// Bytes of the word that each of several pieces takes; a single piece takes the whole word.
    #[inline]
    pub(super) fn lengths<'a>(
        &'a self,
        pieces: &'a [u32],
        word: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let is_single = pieces.len() == 1;
        pieces.iter().enumerate().map(move |(i, &id)| {
            let length = self.lengths[id as usize] as usize;
            match (is_single, i) {
                (true, _) => word,
                (_, 0) => length,
                _ => length - self.prefix,
            }
        })
    }

    /// Bytes held.
    pub(super) fn resident_bytes(&self) -> usize {
        self.begin.resident_bytes() + self.inside.resident_bytes() + self.lengths.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_string_is_found_and_no_other() {
        let strings = ["un", "una", "unable", "u", "é", "éa", "z\u{10ffff}", "una"];
        let trie = Trie::new(strings.iter().zip(0..).map(|(s, id)| (s.as_bytes(), id)));
        let longest = |text: &str| trie.longest(text.as_bytes());
        assert_eq!(longest("unabl"), Some((3, 7)));
        assert_eq!(longest("unable to"), Some((6, 2)));
        assert_eq!(longest("ux"), Some((1, 3)));
        assert_eq!(longest("éb"), Some((2, 4)));
        assert_eq!(longest("z\u{10ffff}"), Some((5, 6)));
        assert_eq!(longest("z\u{10fffe}"), None);
        assert_eq!(longest(""), None);
        assert_eq!(longest("\0"), None);
        assert_eq!(Trie::new([]).longest(b"\0a"), None);
    }

    #[test]
    fn a_trie_answers_as_a_list_does() {
        let mut state = 7_u64;
        let mut draw = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let strings: Vec<Vec<u8>> = (0..3000)
            .map(|_| {
                (0..=draw(5))
                    .map(|_| draw(256) as u8 % [3, 7, 255][draw(3) as usize])
                    .collect()
            })
            .collect();
        let trie = Trie::new(strings.iter().zip(0..).map(|(s, id)| (&s[..], id)));
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..draw(8))
                .map(|_| draw(256) as u8 % [3, 7, 255][draw(3) as usize])
                .collect();
            let expected = strings
                .iter()
                .enumerate()
                .filter(|(_, s)| text.starts_with(s));
            let expected = expected.max_by_key(|&(i, s)| (s.len(), i));
            assert_eq!(
                trie.longest(&text),
                expected.map(|(i, s)| (s.len(), i as u32))
            );
        }
    }
}
