//! Values that were not sent: filled in from the row before, or waited for.
//!
//! An update that leaves a TOAST column alone carries a placeholder; its value is the live row's. A
//! key change is a delete of the old key and a create of the new one, which may lie in different
//! partitions: the create's missing values are those of the old row *just before its delete*. So the
//! two halves meet here, whichever comes first:
//!
//! ```text
//! delete k1 → k2 ─▶ its row goes to `left`     ┐ the n-th delete of a move meets
//! create k2 ← k1 ─▶ takes it, or parks         ┘ the n-th create of it
//! ```
//!
//! A row that waits can itself be moved on (k2 → k3): then the wait moves with it. An update whose row
//! was never seen (the topic was read from its middle) parks until the row is read.
//!
//! Invariants: a parked row is not in the table; every row that waits for a move is found through
//! `waits`. A value that can be NULL or unsent (see [`Cell::NullOrUnavailable`]) is NULL if it was
//! NULL, and else an error: the change is refused and the row stays as it was.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use engine::error::DataError;
use engine::limits::ENVELOPE_PARKED_ROWS_MAX;
use engine::model::{Key, Value};
use serde::{Deserialize, Serialize};

use super::{Applied, Letter, Output};
use crate::envelope::order::{LogPosition, Order};
use crate::envelope::types::{Cell, complete};

/// A key change: old key, new key, and its place in the log (both halves share the LSN).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct MoveName {
    from: Key,
    to: Key,
    at: Option<LogPosition>,
}

impl MoveName {
    pub(super) fn new(from: &Key, to: &Key, order: Order) -> MoveName {
        MoveName {
            from: from.clone(),
            to: to.clone(),
            at: order.log().map(|position| LogPosition {
                index: 0,
                ..position
            }),
        }
    }
}

/// The n-th key change of a name; names repeat only where the source sends no positions.
type MoveId = (MoveName, u32);

/// What a row's missing values wait for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Wait {
    /// The delete of its old key.
    Move(MoveId),
    /// A message that has them.
    Anything,
}

/// A row with gaps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Image {
    cells: Vec<Cell>,
    wait: Wait,
    at: Option<LogPosition>,
}

/// Where a row that waits for a move lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Place {
    Parked(Key),
    Left(MoveId),
}

/// A row as it arrives.
pub(super) struct Arrival {
    pub(super) key: Key,
    pub(super) cells: Vec<Cell>,
    pub(super) order: Order,
    /// Whether the row is an insert: a live row of its key is not its predecessor.
    pub(super) is_new: bool,
}

/// Rows that wait, and halves of key changes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Unsent {
    parked: BTreeMap<Key, Image>,
    left: HashMap<MoveId, Image>,
    waits: HashMap<MoveId, Place>,
    /// (creates, deletes) of a move whose halves have not all met.
    halves: HashMap<MoveName, (u32, u32)>,
}

impl Unsent {
    pub(super) fn parked_rows(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn unresolved(&self) -> Vec<Letter> {
        self.parked.keys().map(unavailable).collect()
    }

    /// A delete, which may be the first half of a key change.
    pub(super) fn delete(
        &mut self,
        key: &Key,
        moved: Option<MoveName>,
        live: impl FnOnce() -> Option<Vec<Value>>,
        out: &mut Applied,
    ) {
        let parked = self.parked.remove(key);
        let Some(name) = moved else {
            self.forget_wait(parked);
            return;
        };
        let image = parked.or_else(|| live().map(whole));
        let (creates, deletes) = self.halves.entry(name.clone()).or_default();
        let id = (name.clone(), *deletes);
        *deletes += 1;
        let has_met = *creates >= *deletes;
        if creates == deletes {
            self.halves.remove(&name);
        }
        match (has_met, image) {
            (true, image) => match self.waits.remove(&id) {
                Some(place) => self.resolve(place, image, out),
                None => self.forget_wait(image),
            },
            (false, Some(image)) => self.leave(id, image, out),
            (false, None) => {}
        }
    }

    /// An upsert, which may be the second half of a key change.
    pub(super) fn upsert(
        &mut self,
        arrival: Arrival,
        moved: Option<MoveName>,
        live: impl FnOnce() -> Option<Vec<Value>>,
        out: &mut Applied,
    ) {
        let mut image = Image {
            cells: arrival.cells,
            wait: Wait::Anything,
            at: arrival.order.place(),
        };
        let before = self.parked.remove(&arrival.key);
        let is_move = moved.is_some();
        let before = match moved {
            Some(name) => {
                self.forget_wait(before);
                self.claim(name, &mut image)
            }
            None if is_complete(&image.cells) => {
                self.forget_wait(before);
                None
            }
            // The old row of an insert is not known: its key was not named.
            None if arrival.is_new => {
                let mut letter = unavailable(&arrival.key);
                let hint = "keep the header __debezium.oldkey, which names the old key";
                letter.error.hint = Some(hint.to_owned());
                out.letters.push(letter);
                None
            }
            None => before.or_else(|| live().map(whole)),
        };
        if let Some(before) = before
            && let Err(letter) = fill(&mut image, before, &arrival.key)
        {
            out.letters.push(letter);
            return;
        }
        // A claim that found nothing leaves no wait behind: a wait for a delete that has been.
        if is_move && !is_complete(&image.cells) && image.wait == Wait::Anything {
            out.letters.push(unavailable(&arrival.key));
        }
        self.settle(arrival.key, image, out);
    }

    /// Counts a create of a move; its old row if the delete came first, else the image waits.
    fn claim(&mut self, name: MoveName, image: &mut Image) -> Option<Image> {
        let (creates, deletes) = self.halves.entry(name.clone()).or_default();
        let id = (name.clone(), *creates);
        *creates += 1;
        let has_met = *deletes >= *creates;
        if creates == deletes {
            self.halves.remove(&name);
        }
        match has_met {
            true => self.left.remove(&id),
            false => {
                if !is_complete(&image.cells) {
                    image.wait = Wait::Move(id);
                }
                None
            }
        }
    }

    /// Puts a row out, or parks it.
    fn settle(&mut self, key: Key, image: Image, out: &mut Applied) {
        match complete(image.cells) {
            Ok(values) => {
                self.stop_waiting(image.wait);
                out.outputs.push(Output::Upsert { key, values });
            }
            Err(_) if self.parked.len() + self.left.len() >= ENVELOPE_PARKED_ROWS_MAX => {
                self.stop_waiting(image.wait);
                out.letters.push(too_many(&key));
            }
            Err(cells) => {
                if let Wait::Move(id) = &image.wait {
                    self.waits.insert(id.clone(), Place::Parked(key.clone()));
                }
                self.parked.insert(key, Image { cells, ..image });
            }
        }
    }

    /// Keeps the row of a delete for its create.
    fn leave(&mut self, id: MoveId, image: Image, out: &mut Applied) {
        if self.parked.len() + self.left.len() >= ENVELOPE_PARKED_ROWS_MAX {
            out.letters.push(too_many(&id.0.from));
            self.forget_wait(Some(image));
            return;
        }
        if let Wait::Move(earlier) = &image.wait {
            self.waits.insert(earlier.clone(), Place::Left(id.clone()));
        }
        self.left.insert(id, image);
    }

    /// The old row of a move has come to the row that waits for it.
    fn resolve(&mut self, place: Place, old: Option<Image>, out: &mut Applied) {
        match place {
            Place::Parked(key) => {
                let Some(mut image) = self.parked.remove(&key) else {
                    return;
                };
                image.wait = Wait::Anything;
                let filled = match old {
                    Some(old) => fill(&mut image, old, &key),
                    None => Err(unavailable(&key)),
                };
                match filled {
                    Ok(()) => self.settle(key, image, out),
                    Err(letter) => {
                        out.letters.push(letter);
                        self.parked.insert(key, image);
                    }
                }
            }
            Place::Left(id) => {
                let Some(mut image) = self.left.remove(&id) else {
                    return;
                };
                image.wait = Wait::Anything;
                if let Some(old) = old
                    && let Err(letter) = fill(&mut image, old, &id.0.from)
                {
                    out.letters.push(letter);
                }
                self.leave(id, image, out);
            }
        }
    }

    /// A row that waited does not any more.
    fn forget_wait(&mut self, image: Option<Image>) {
        if let Some(image) = image {
            self.stop_waiting(image.wait);
        }
    }

    fn stop_waiting(&mut self, wait: Wait) {
        if let Wait::Move(id) = wait {
            self.waits.remove(&id);
        }
    }

    /// All rows before this place are gone; without one all rows are.
    pub(super) fn truncate(&mut self, at: Option<LogPosition>) {
        let is_after = |place: Option<LogPosition>| {
            let places = place.zip(at);
            places.is_some_and(|(place, at)| place.to_truncate(&at) != Some(Ordering::Less))
        };
        self.parked.retain(|_, image| is_after(image.at));
        self.left.retain(|(name, _), _| is_after(name.at));
        self.halves.retain(|name, _| is_after(name.at));
        self.waits.retain(|(name, _), _| is_after(name.at));
    }
}

fn whole(values: Vec<Value>) -> Image {
    Image {
        cells: values.into_iter().map(Cell::Value).collect(),
        wait: Wait::Anything,
        at: None,
    }
}

fn is_complete(cells: &[Cell]) -> bool {
    cells.iter().all(|cell| cell.known().is_some())
}

/// Fills the gaps of a row from the row before, whose own gaps and wait it inherits.
fn fill(image: &mut Image, before: Image, key: &Key) -> Result<(), Letter> {
    for (cell, before) in std::iter::zip(&mut image.cells, before.cells) {
        match (&*cell, before) {
            (Cell::Value(_), _) => {}
            (Cell::Unavailable, before) => *cell = before,
            (Cell::NullOrUnavailable, Cell::Value(Value::Null)) => {
                *cell = Cell::Value(Value::Null);
            }
            (Cell::NullOrUnavailable, Cell::Value(_)) => return Err(ambiguous(key)),
            (Cell::NullOrUnavailable, Cell::Unavailable | Cell::NullOrUnavailable) => {}
        }
    }
    image.wait = before.wait;
    Ok(())
}

fn ambiguous(key: &Key) -> Letter {
    let detail = format!(
        "row {}: bytes became NULL or were not sent; with binary.handling.mode=base64 both arrive \
         as null",
        key.as_str()
    );
    let error = DataError::new("ambiguous-null", detail)
        .expected("binary.handling.mode=bytes or hex")
        .hint("change the connector's mode, or REPLICA IDENTITY FULL, and read the table again");
    Letter::of(key, error)
}

fn unavailable(key: &Key) -> Letter {
    let detail = format!(
        "row {}: a value was not sent and the row that has it is not known",
        key.as_str()
    );
    let error = DataError::new("unavailable-value", detail)
        .expected("the row before, read from the start of the topic or by a snapshot")
        .hint("read the table again (an incremental snapshot), or REPLICA IDENTITY FULL");
    Letter::of(key, error)
}

fn too_many(key: &Key) -> Letter {
    let detail = format!(
        "row {}: {ENVELOPE_PARKED_ROWS_MAX} rows wait for values that were not sent; the limit is \
         ENVELOPE_PARKED_ROWS_MAX",
        key.as_str()
    );
    let error = DataError::new("too-many-unavailable", detail)
        .hint("read the table again (an incremental snapshot), or REPLICA IDENTITY FULL");
    Letter::of(key, error)
}
