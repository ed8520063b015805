//! Packing: texts end to end, no padding, and the buckets that graphs are captured for.
//!
//! ```text
//!   texts   [101 7 102] [101 9 9 9 102] …          counts   tokens, texts, tiles
//!   ids      101 7 102   101 9 9 9 102  …          starts   0 3 8 …          where each text begins
//!   places   0   1 2     0   1 2 3 4    …          tiles    (text, first query) of 64 queries each,
//!                                                           longest texts first, so that the device's
//!                                                           last blocks are short ones
//!                                               items    what attention by heads takes at a time: see Item
//! ```
//!
//! A batch goes to the device as one block of bytes whose layout depends on its bucket alone, so a
//! graph captured for the bucket finds everything where it was; the real counts are read there.
//!
//! Invariants: order of texts is the caller's; the order of tiles changes no result, only who computes
//! it when; nothing is allocated once a [`Batch`] has grown. Limits: a text has 1 … 65,535 ids.

use super::device::{Fault, Kind, Tensor};
use super::items::{self, Item};
use super::tiles::ATTENTION_TILE;

/// A text as the tokenizer leaves it, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text {
    /// Token ids.
    pub ids: Vec<u32>,
    /// From this id on they belong to the second segment (a cross-encoder's passage).
    pub second: Option<usize>,
}

impl Text {
    /// A text of one segment.
    pub fn new(ids: Vec<u32>) -> Self {
        Text { ids, second: None }
    }
}

/// The most that a batch may hold: a graph exists for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Token rows.
    pub tokens: usize,
    /// Texts.
    pub texts: usize,
}

/// All buckets, smallest first.
pub const BUCKETS: [Bucket; 8] = [
    Bucket {
        tokens: 64,
        texts: 16,
    },
    Bucket {
        tokens: 256,
        texts: 64,
    },
    Bucket {
        tokens: 1024,
        texts: 128,
    },
    Bucket {
        tokens: 2048,
        texts: 256,
    },
    Bucket {
        tokens: 4096,
        texts: 512,
    },
    Bucket {
        tokens: 8192,
        texts: 1024,
    },
    Bucket {
        tokens: 16_384,
        texts: 2048,
    },
    Bucket {
        tokens: 32_768,
        texts: 4096,
    },
];

impl Bucket {
    /// The smallest bucket that holds so much.
    pub fn holding(tokens: usize, texts: usize) -> Option<Bucket> {
        BUCKETS
            .into_iter()
            .find(|bucket| tokens <= bucket.tokens && texts <= bucket.texts)
    }

    /// Tiles of queries at most: Σ ⌈length / 64⌉ ≤ tokens / 64 + texts.
    pub fn tiles(&self) -> usize {
        self.tokens / ATTENTION_TILE + self.texts
    }

    /// Byte offsets of starts, ids, places, tiles and items behind the counts, and the end.
    fn layout(&self) -> [usize; 6] {
        let mut at = 16;
        let ints = [
            self.texts + 1,
            self.tokens,
            self.tokens,
            2 * self.tiles(),
            items::WORDS * self.items(),
            0,
        ];
        ints.map(|ints| {
            let here = at;
            at += (4 * ints).next_multiple_of(16);
            here
        })
    }

    /// Bytes of a batch's block.
    pub fn bytes(&self) -> usize {
        self.layout()[5]
    }
}

/// A batch's block in device memory, as tensors of ints with one column.
#[derive(Debug, Clone, Copy)]
pub struct OnDevice {
    /// What it may hold.
    pub bucket: Bucket,
    /// Token rows; the number of texts lies behind it.
    pub token_count: Tensor,
    /// Texts.
    pub text_count: Tensor,
    /// Tiles of attention.
    pub tile_count: Tensor,
    /// `[texts + 1]`.
    pub starts: Tensor,
    /// `[tokens]`.
    pub ids: Tensor,
    /// `[tokens]`: position in bits 0–15, segment above.
    pub places: Tensor,
    /// `[tiles, 2]`: text, first query.
    pub tiles: Tensor,
    /// Items of attention by heads.
    pub item_count: Tensor,
    /// `[items, 8]`: first rows of four slots, then lengths and first queries (`cuda/attention_heads.cu`).
    pub items: Tensor,
}

impl OnDevice {
    /// Where things lie in a block of `bucket.bytes()` at `address`, a multiple of 16.
    pub fn new(bucket: Bucket, address: u64) -> Self {
        let [starts, ids, places, tiles, items, _] = bucket.layout();
        let ints = |at: usize, rows: usize, columns: usize| Tensor {
            address: address + at as u64,
            rows,
            columns,
            kind: Kind::Int,
        };
        OnDevice {
            bucket,
            token_count: ints(0, 1, 1),
            text_count: ints(4, 1, 1),
            tile_count: ints(8, 1, 1),
            starts: ints(starts, bucket.texts + 1, 1),
            ids: ints(ids, bucket.tokens, 1),
            places: ints(places, bucket.tokens, 1),
            tiles: ints(tiles, bucket.tiles(), 2),
            item_count: ints(12, 1, 1),
            items: ints(items, bucket.items(), items::WORDS),
        }
    }
}

/// Texts packed end to end. Used again and again: [`Batch::clear`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    places: Vec<u32>,
    starts: Vec<u32>,
    order: Vec<u32>,
    items: Vec<Item>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.places.clear();
        self.starts.clear();
    }

    /// Token rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Texts.
    pub fn texts(&self) -> usize {
        self.starts.len()
    }

    /// Whether a text of `length` ids can be added within a bucket.
    pub fn has_room(&self, length: usize, most: Bucket) -> bool {
        self.tokens() + length <= most.tokens && self.texts() < most.texts
    }

    /// Adds a text. Panics on one of no ids or of more than 65,535: callers check texts on arrival.
    pub fn push(&mut self, text: &Text) {
        let length = text.ids.len();
        assert!((1..=0xffff).contains(&length), "{length} ids in a text");
        let second = text.second.unwrap_or(length);
        self.starts.push(self.ids.len() as u32);
        self.ids.extend_from_slice(&text.ids);
        self.places
            .extend((0..length).map(|at| at as u32 | u32::from(at >= second) << 16));
    }

    fn length(&self, text: usize) -> usize {
        let end = self.starts.get(text + 1).copied();
        end.unwrap_or(self.ids.len() as u32) as usize - self.starts[text] as usize
    }

    /// Writes the block of a bucket, and says how many tiles it has. What lies behind the real counts
    /// stays as it is. Panics when the batch is larger than the bucket or the block shorter.
    pub fn write(&mut self, bucket: Bucket, block: &mut [u8]) -> usize {
        assert!(
            self.tokens() <= bucket.tokens && self.texts() <= bucket.texts,
            "the batch fits its bucket"
        );
        let [starts, ids, places, tiles, items, _] = bucket.layout();
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..self.texts() as u32);
        order.sort_unstable_by_key(|&text| (usize::MAX - self.length(text as usize), text));
        let listed = order.iter().flat_map(|&text| {
            let firsts = (0..self.length(text as usize)).step_by(ATTENTION_TILE);
            firsts.flat_map(move |first| [text, first as u32])
        });
        let count = put(block, tiles, listed) / 2;
        let mut list = std::mem::take(&mut self.items);
        let sized = order.iter().map(|&text| {
            let length = self.length(text as usize) as u32;
            (self.starts[text as usize], length)
        });
        items::pack(&mut list, sized, bucket.queries() as u32);
        put(block, items, list.iter().flat_map(Item::words));
        put(
            block,
            starts,
            self.starts.iter().copied().chain([self.ids.len() as u32]),
        );
        put(block, ids, self.ids.iter().copied());
        put(block, places, self.places.iter().copied());
        let counts = [self.tokens(), self.texts(), count, list.len()];
        put(block, 0, counts.into_iter().map(|count| count as u32));
        (self.order, self.items) = (order, list);
        count
    }
}

/// Writes little-endian ints from a byte on; says how many.
fn put(block: &mut [u8], at: usize, ints: impl Iterator<Item = u32>) -> usize {
    let mut count = 0;
    for (to, int) in block[at..].chunks_exact_mut(4).zip(ints) {
        to.copy_from_slice(&int.to_le_bytes());
        count += 1;
    }
    count
}

/// Fails on a text that a model of this shape cannot take.
pub(super) fn check(
    text: &Text,
    max_tokens: usize,
    vocabulary: usize,
    segments: usize,
) -> Result<(), Fault> {
    let refuse = |why: String| Err(Fault::Shape(why));
    let length = text.ids.len();
    if length == 0 || length > max_tokens.min(0xffff) {
        return refuse(format!("{length} ids, the model takes 1 to {max_tokens}"));
    }
    if let Some(id) = text.ids.iter().find(|&&id| id as usize >= vocabulary) {
        return refuse(format!("id {id}, the vocabulary has {vocabulary}"));
    }
    if text.second.is_some_and(|at| at < length) && segments < 2 {
        return refuse("a second segment, the model has one".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(block: &[u8], at: usize, count: usize) -> Vec<u32> {
        let all = block[at..].chunks_exact(4).take(count);
        all.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    #[test]
    fn a_packed_batch_reads_back() {
        let mut batch = Batch::new();
        for _ in 0..2 {
            batch.clear();
            batch.push(&Text {
                ids: vec![5, 6, 7],
                second: Some(2),
            });
            batch.push(&Text::new((0..130).collect()));
            batch.push(&Text::new((0..64).collect()));
            let bucket = Bucket::holding(batch.tokens(), batch.texts()).unwrap();
            assert_eq!(bucket.tokens, 256);
            let mut block = vec![0xee; bucket.bytes()];
            assert_eq!(batch.write(bucket, &mut block), 5);
            let [starts, ids, places, tiles, items, _] = bucket.layout();
            assert_eq!(ints(&block, 0, 4), [197, 3, 5, 5]);
            assert_eq!(ints(&block, starts, 4), [0, 3, 133, 197]);
            assert_eq!(ints(&block, ids, 5), [5, 6, 7, 0, 1]);
            assert_eq!(ints(&block, places, 5), [0, 1, 2 | 1 << 16, 0, 1]);
            assert_eq!(ints(&block, tiles, 10), [1, 0, 1, 64, 1, 128, 2, 0, 0, 0]);
            let at = |first: u32| 130 | (first / 16) << 16;
            let third = [3, 3, 3, 3, at(128), at(144), at(160), at(176)];
            assert_eq!(ints(&block, items + 64, 8), third);
            let last = [0, 0, 0, 0, 3, 0, 0, 0];
            assert_eq!(ints(&block, items + 128, 8), last);
        }
    }

    #[test]
    fn buckets_have_room_for_the_worst_mix_of_lengths() {
        for bucket in BUCKETS {
            // As many texts as may be, all but one of one token: the most tiles there can be.
            let long = bucket.tokens - (bucket.texts - 1);
            assert!(long.div_ceil(64) + bucket.texts - 1 <= bucket.tiles());
            assert!(bucket.bytes().is_multiple_of(16));
            let device = OnDevice::new(bucket, 4096);
            for list in [device.tiles, device.items] {
                assert!(list.address as usize + list.bytes() <= 4096 + bucket.bytes());
            }
        }
        assert_eq!(Bucket::holding(64, 17), Some(BUCKETS[1]));
        assert_eq!(Bucket::holding(32_769, 1), None);
    }

    #[test]
    fn texts_that_no_model_takes_are_refused() {
        let message = |text: Text| check(&text, 4, 10, 1).unwrap_err().to_string();
        assert_eq!(
            message(Text::default()),
            "shapes: 0 ids, the model takes 1 to 4"
        );
        assert_eq!(
            message(Text::new(vec![1; 5])),
            "shapes: 5 ids, the model takes 1 to 4"
        );
        assert_eq!(
            message(Text::new(vec![1, 10])),
            "shapes: id 10, the vocabulary has 10"
        );
        let pair = Text {
            ids: vec![1, 2],
            second: Some(1),
        };
        assert_eq!(message(pair), "shapes: a second segment, the model has one");
    }
}
