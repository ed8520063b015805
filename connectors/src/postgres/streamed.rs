//! Transactions that the server sends before they commit: kept until it is known what became of them.
//!
//! ```text
//! StreamStart 7 ─▶ messages ─▶ StreamStop …                 ┌ StreamCommit 7 ─▶ replay, in the order sent
//! StreamStart 9 ─▶ messages ─▶ StreamStop …  kept by xid ───┤ StreamAbort 9, 12 ─▶ those of 12 are left out
//!      (in turns, as they grow)                             └ StreamAbort 9, 9 ─▶ forgotten
//! ```
//!
//! The idea: messages are kept as they came, undecoded; a replay gives them to the very path that a
//! transaction takes which is sent whole. So nothing of an open transaction is seen, the shapes of its
//! tables included, and its changes meet the tables in the order of the commits. (The server sends a
//! table's shape again after each rollback, so that none is missing that a rollback took along.)
//!
//! Invariants: a replay has the messages of the transaction and of its subtransactions that were not
//! rolled back, and no others, in the order in which they were sent; memory is at most the limit and
//! one message, files are within theirs; a file is no longer in its folder once it is open, so it is
//! gone with the process whatever ends it.
//!
//! Limits: what a rolled back subtransaction wrote keeps its room until the transaction ends; one open
//! file a transaction that does not fit into memory.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use engine::limits::{STREAMED_BYTES_MAX, STREAMED_FILE_BYTES_MAX};

use super::message;

/// Why a transaction cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Unkept {
    /// Not as the protocol has it: reading the log again helps, or nothing.
    #[error("{0}")]
    Disorder(String),
    /// No room: the server must keep such transactions itself until they commit.
    #[error("{0}")]
    NoRoom(String),
}

/// The open transactions of one stream of the log. See the module.
#[derive(Debug)]
pub struct Streamed {
    folder: PathBuf,
    memory_max: usize,
    files_max: u64,
    /// The transaction whose messages come now.
    open: Option<u32>,
    transactions: HashMap<u32, Kept>,
    /// Bytes of all of them in memory, and in files.
    memory: usize,
    files: u64,
}

/// What was sent of one transaction.
#[derive(Debug, Default)]
struct Kept {
    /// What came first; `None` while memory has all of it.
    file: Option<File>,
    file_bytes: u64,
    /// What came after: each message with its length before it.
    memory: Vec<u8>,
    /// Subtransactions that were rolled back.
    aborted: HashSet<u32>,
}

impl Streamed {
    /// Transactions beyond memory go to files in `folder`, which is made when it is needed.
    pub fn new(folder: &Path) -> Streamed {
        Streamed::bounded(folder, STREAMED_BYTES_MAX, STREAMED_FILE_BYTES_MAX)
    }

    /// The same with other limits, bytes of all transactions in memory and in files.
    pub fn bounded(folder: &Path, memory_max: usize, files_max: u64) -> Streamed {
        Streamed {
            folder: folder.to_owned(),
            memory_max,
            files_max,
            open: None,
            transactions: HashMap::new(),
            memory: 0,
            files: 0,
        }
    }

    /// Whether messages come that belong to an open transaction.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes that are kept, and how many of them in files.
    pub fn bytes(&self) -> (u64, u64) {
        (self.memory as u64 + self.files, self.files)
    }

    /// What follows belongs to transaction `xid`.
    pub fn start(&mut self, xid: u32, is_first: bool) -> Result<(), Unkept> {
        if let Some(open) = self.open {
            return Err(disorder(format!(
                "{xid} begins within the stream of {open}"
            )));
        }
        if is_first {
            self.forget(xid);
            self.transactions.insert(xid, Kept::default());
        } else if !self.transactions.contains_key(&xid) {
            return Err(disorder(format!("{xid} goes on and never began")));
        }
        self.open = Some(xid);
        Ok(())
    }

    /// Keeps a message that came since [`Streamed::start`]. Cost: a copy; beyond the limit of memory
    /// the largest transaction is written to its file.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Unkept> {
        let open = self.open.and_then(|xid| self.transactions.get_mut(&xid));
        let Some(kept) = open else {
            return Err(disorder("a change outside a stream".to_owned()));
        };
        if message::owner(bytes).map_err(disorder)?.is_none() {
            return Ok(());
        }
        let length = u32::try_from(bytes.len());
        let length = length.map_err(|_| disorder("a message of over 4 GiB".to_owned()))?;
        kept.memory.extend(length.to_le_bytes());
        kept.memory.extend(bytes);
        self.memory += size_of::<u32>() + bytes.len();
        while self.memory > self.memory_max {
            self.spill()?;
        }
        Ok(())
    }

    /// What follows belongs to something else.
    pub fn stop(&mut self) -> Result<(), Unkept> {
        let open = self.open.take();
        open.map(drop)
            .ok_or_else(|| disorder("a stream ends that did not begin".to_owned()))
    }

    /// `subxid`, `xid` itself or a subtransaction of it, is rolled back.
    pub fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.forget(xid);
        } else if let Some(kept) = self.transactions.get_mut(&xid) {
            kept.aborted.insert(subxid);
        }
    }

    /// Transaction `xid` is committed: its messages, to be read.
    pub fn commit(&mut self, xid: u32) -> Result<Replay, Unkept> {
        let Some(mut kept) = self.forget(xid) else {
            return Err(disorder(format!("{xid} is committed and never began")));
        };
        let file = match kept.file.take() {
            Some(mut file) => {
                file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
                Some(BufReader::with_capacity(
                    1 << 20,
                    file.take(kept.file_bytes),
                ))
            }
            None => None,
        };
        Ok(Replay {
            file,
            memory: io::Cursor::new(kept.memory),
            aborted: kept.aborted,
            message: Vec::new(),
        })
    }

    fn forget(&mut self, xid: u32) -> Option<Kept> {
        let kept = self.transactions.remove(&xid)?;
        self.memory -= kept.memory.len();
        self.files -= kept.file_bytes;
        Some(kept)
    }

    /// Writes what memory has of the largest transaction to its file.
    fn spill(&mut self) -> Result<(), Unkept> {
        let all = self.transactions.values_mut();
        let Some(largest) = all.max_by_key(|kept| kept.memory.len()) else {
            return Ok(());
        };
        let bytes = largest.memory.len();
        if self.files + bytes as u64 > self.files_max {
            return Err(Unkept::NoRoom(format!(
                "transactions that are not committed take more than STREAMED_FILE_BYTES_MAX ({} bytes)",
                self.files_max
            )));
        }
        let written = match &mut largest.file {
            Some(file) => file.write_all(&largest.memory),
            empty => {
                open(&self.folder).and_then(|file| empty.insert(file).write_all(&largest.memory))
            }
        };
        written.map_err(|error| {
            let folder = self.folder.display();
            Unkept::NoRoom(format!(
                "a transaction that is not committed cannot be written to a file in {folder}: {error}"
            ))
        })?;
        largest.file_bytes += bytes as u64;
        largest.memory = Vec::new();
        self.files += bytes as u64;
        self.memory -= bytes;
        Ok(())
    }
}

fn disorder(what: String) -> Unkept {
    Unkept::Disorder(format!("a stream of transactions out of order: {what}"))
}

fn unreadable(error: io::Error) -> Unkept {
    Unkept::NoRoom(format!(
        "the file of a transaction cannot be read back: {error}"
    ))
}

/// A file that has no name any more.
fn open(folder: &Path) -> io::Result<File> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    std::fs::create_dir_all(folder)?;
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("postgres-{}-{number}", std::process::id()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true);
    let file = file.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The messages of a committed transaction.
#[derive(Debug)]
pub struct Replay {
    file: Option<BufReader<io::Take<File>>>,
    memory: io::Cursor<Vec<u8>>,
    aborted: HashSet<u32>,
    message: Vec<u8>,
}

impl Replay {
    /// The next message, to be decoded as one of a stream; `None` at the end.
    ///
    /// Errors: its file cannot be read.
    #[expect(clippy::should_implement_trait, reason = "it lends what it gives")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Unkept> {
        loop {
            if !self.read()? {
                return Ok(None);
            }
            let owner = message::owner(&self.message).map_err(disorder)?;
            if owner.is_none_or(|owner| !self.aborted.contains(&owner)) {
                return Ok(Some(&self.message));
            }
        }
    }

    /// Reads one message, first from the file; whether there was one.
    fn read(&mut self) -> Result<bool, Unkept> {
        if let Some(file) = &mut self.file {
            if !io::BufRead::fill_buf(file).map_err(unreadable)?.is_empty() {
                read_one(file, &mut self.message).map_err(unreadable)?;
                return Ok(true);
            }
            self.file = None;
        }
        if self.memory.position() == self.memory.get_ref().len() as u64 {
            return Ok(false);
        }
        read_one(&mut self.memory, &mut self.message).map_err(unreadable)?;
        Ok(true)
    }
}

fn read_one(from: &mut impl Read, message: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; size_of::<u32>()];
    from.read_exact(&mut length)?;
    message.resize(u32::from_le_bytes(length) as usize, 0);
    from.read_exact(message)
}
