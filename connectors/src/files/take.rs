//! What is made of what was read: rows, deletes, dead letters; of files, archives and their members.
//!
//! ```text
//! text ─▶ row, if it differs          bad ─▶ the row goes, dead letter
//! too slow ─▶ dead letter, the row stays, three more tries ─▶ bad
//! busy ─▶ later                       archive ─▶ each member so, then those that are gone
//! ```
//!
//! Invariants: a letter is told once, until its file is good, changed in another way, or gone; a letter about
//! a file whose row goes comes after the delete. An archive with members that are tried again is walked again.

use std::collections::HashSet;
use std::time::Instant;

use engine::contract::SinkClosed;
use engine::error::DataError;
use engine::model::{ContentHash, Key};

use super::read::{Stamp, Unread};
use super::rows::too_long;
use super::watch::{Known, Retry, Told, Watcher};
use super::{MEMBER, archive, archive_of, read, text_of, wants_member};
use crate::document::{Kind, Packing};
use crate::text::BadFile;

/// Tries of a version whose text is not found in time, beyond the first.
const SLOW_TRIES: u32 = 3;
/// Pauses between tries double so often.
const DOUBLINGS: u32 = 5;
/// The code of [`too_long`].
const TOO_LONG: &str = "key-too-large";
/// Members of one archive whose paths are too long and that are told.
const LONG_TOLD: usize = 64;

impl Known {
    /// Whether it was told with this code.
    fn is_told(&self, code: &str) -> bool {
        self.told.as_ref().is_some_and(|told| told.code == code)
    }
}

impl Watcher {
    /// Takes what reading a file gave.
    pub(super) fn take(
        &mut self,
        name: &str,
        found: Result<String, Unread>,
        stamp: Stamp,
        is_at_rest: bool,
    ) -> Result<(), SinkClosed> {
        // What was read in motion is read again.
        let read_at = is_at_rest.then_some(stamp);
        match found {
            Ok(text) => {
                let known = self.files.entry(name.to_owned()).or_default();
                known.stamp = read_at;
                known.retry = None;
                // The same row again ends the letter of a file that could not be read.
                let was_told = known.told.take().is_some();
                let row = self.rows.row(name, text, stamp);
                let hash = ContentHash::of(row.as_bytes());
                if known.live.replace(hash) != Some(hash) || was_told {
                    self.rows.emit(name, Some(row))?;
                }
            }
            Err(Unread::Vanished | Unread::Archive) => {}
            Err(Unread::Stopped) => return Err(SinkClosed),
            Err(Unread::Busy) => drop(self.postpone(name, stamp)),
            Err(Unread::World(error)) => {
                self.tell(name, read::unreadable(name, &error))?;
            }
            // The machine may have been busy: the row that was good stays for now.
            Err(Unread::Data(BadFile::TooSlow, _)) if self.postpone(name, stamp) <= SLOW_TRIES => {
                self.tell(name, BadFile::TooSlow.on(name))?;
            }
            Err(Unread::Data(bad, payload)) => {
                let known = self.files.entry(name.to_owned()).or_default();
                known.stamp = read_at;
                known.retry = None;
                self.bad(name, &bad, &payload, is_at_rest)?;
            }
        }
        Ok(())
    }

    /// Has a version read again, later; the number of tries so far.
    fn postpone(&mut self, name: &str, stamp: Stamp) -> u32 {
        let known = self.files.entry(name.to_owned()).or_default();
        let retry = known.retry.take().filter(|retry| retry.stamp == stamp);
        let tries = retry.map_or(0, |retry| retry.tries) + 1;
        let limit = self.source.extractor.limit();
        known.stamp = None;
        known.retry = Some(Retry {
            stamp,
            at: Instant::now() + limit * (1 << (tries - 1).min(DOUBLINGS)),
            tries,
        });
        tries
    }

    /// Tells a letter that leaves the row, once.
    fn tell(&mut self, name: &str, error: DataError) -> Result<(), SinkClosed> {
        let known = self.files.entry(name.to_owned()).or_default();
        let code = error.code.clone();
        if known.is_told(&code) {
            return Ok(());
        }
        known.told = Some(Told { code, before: None });
        self.rows.file_letter(name, error, &[])
    }

    /// Retracts the row of a file that has no text, and says why.
    fn bad(
        &mut self,
        name: &str,
        bad: &BadFile,
        payload: &[u8],
        is_at_rest: bool,
    ) -> Result<(), SinkClosed> {
        let known = self.files.entry(name.to_owned()).or_default();
        let error = bad.on(name);
        let now = Told {
            code: error.code.clone(),
            before: None,
        };
        let told = known.told.replace(now);
        known.text = None;
        let was_live = known.live.take().is_some() || self.rows.is_live(name);
        // The row goes first: the letter is about what came after it. Its delete ends an earlier letter.
        if was_live {
            self.rows.emit(name, None)?;
        }
        let is_told = told.is_some_and(|told| {
            // Each version at rest that is not UTF-8 names its own byte; a file that grows and grows is
            // too large only once, and half a document broken only once.
            let is_news = is_at_rest
                && matches!(bad, BadFile::InvalidUtf8(_))
                && told.before.as_ref() != Some(&error.detail);
            told.code == error.code && !is_news
        });
        match is_told && !was_live {
            true => Ok(()),
            false => self.rows.file_letter(name, error, payload),
        }
    }

    /// Takes the members of an archive that is at rest; those that are gone are deleted.
    pub(super) fn take_archive(
        &mut self,
        name: &str,
        packing: Packing,
        content: &[u8],
        stamp: Stamp,
    ) -> Result<(), SinkClosed> {
        let mut seen = HashSet::new();
        let mut is_whole = true;
        let mut long = Vec::new();
        let pattern = self.source.pattern.clone();
        let mut wants = |inner: &str| wants_member(&pattern, name, inner);
        let ending = archive::members(packing, name, content, &mut wants, &mut |inner, found| {
            if self.is_stopping() {
                return Err(SinkClosed);
            }
            let member = format!("{name}{MEMBER}{inner}");
            if let Some(error) = too_long(&member) {
                if long.len() < LONG_TOLD {
                    long.push((error, member));
                }
                return Ok(());
            }
            is_whole &= self.take_member(&member, found, stamp)?;
            seen.insert(member);
            Ok(())
        })?;
        self.forget_members(name, &seen)?;
        if !is_whole {
            self.postpone(name, stamp);
        }
        let known = self.files.entry(name.to_owned()).or_default();
        if is_whole {
            known.stamp = Some(stamp);
            known.retry = None;
        }
        if let Err(bad) = ending {
            return self.bad(name, &bad, &[], true);
        }
        if !long.is_empty() && known.is_told(TOO_LONG) {
            return Ok(());
        }
        // A key without a row: its delete ends the letter, and a row of the time before.
        if known.told.take().is_some() || known.live.take().is_some() {
            self.rows.emit(name, None)?;
        }
        for (error, member) in long {
            let code = error.code.clone();
            let known = self.files.entry(name.to_owned()).or_default();
            known.told = Some(Told { code, before: None });
            let key = Some(Key::text(name));
            self.rows
                .letter(name.to_owned(), error, member.as_bytes(), key)?;
        }
        Ok(())
    }

    /// Takes a member; false when it is to be read again.
    fn take_member(
        &mut self,
        name: &str,
        found: Result<Vec<u8>, BadFile>,
        stamp: Stamp,
    ) -> Result<bool, SinkClosed> {
        let found = match found {
            Ok(content) => {
                let kind = self.source.kind_of(name, &content);
                text_of(&self.source, kind, content, &self.rows.context.stop)
            }
            Err(bad) => Err(Unread::Data(bad, Vec::new())),
        };
        let known = self.files.entry(name.to_owned()).or_default();
        known.missing_since = None;
        let text = match found {
            Ok(text) => text,
            found => {
                self.take(name, found, stamp, true)?;
                return Ok(self
                    .files
                    .get(name)
                    .is_none_or(|known| known.retry.is_none()));
            }
        };
        let hash = ContentHash::of(text.as_bytes());
        if known.live.is_some() && known.text.is_none() {
            known.text = self.rows.live_text(name);
        }
        let is_same = known.live.is_some() && known.text == Some(hash) && known.told.is_none();
        known.text = Some(hash);
        known.retry = None;
        match is_same {
            true => Ok(true),
            false => self.take(name, Ok(text), stamp, true).map(|()| true),
        }
    }

    /// Deletes a file, and the members of an archive.
    pub(super) fn forget(&mut self, name: &str) -> Result<(), SinkClosed> {
        let known = self.files.remove(name).unwrap_or_default();
        self.delete(name, &known)?;
        match self.source.kind_of(name, &[]) {
            Kind::Archive(_) => self.forget_members(name, &HashSet::new()),
            _ => Ok(()),
        }
    }

    /// A file that was bad takes its letter with it.
    fn delete(&mut self, name: &str, known: &Known) -> Result<(), SinkClosed> {
        match known.live.is_some() || known.told.is_some() || self.rows.is_live(name) {
            true => self.rows.emit(name, None),
            false => Ok(()),
        }
    }

    /// Deletes the members of an archive that are not among these. Cost: its members.
    pub(super) fn forget_members(
        &mut self,
        archive: &str,
        seen: &HashSet<String>,
    ) -> Result<(), SinkClosed> {
        let begin = format!("{archive}{MEMBER}");
        let members = self.files.range(begin.clone()..).map(|(name, _)| name);
        let members = members.take_while(|name| name.starts_with(&begin));
        let is_gone = |name: &&String| {
            archive_of(name).is_some_and(|(of, _)| of == archive) && !seen.contains(*name)
        };
        let gone: Vec<String> = members.filter(is_gone).cloned().collect();
        for name in gone {
            let known = self.files.remove(&name).unwrap_or_default();
            self.delete(&name, &known)?;
        }
        Ok(())
    }
}
