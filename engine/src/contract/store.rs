//! Where durable bytes lie: named files that are appended, or replaced as a whole.

use crate::error::WorldError;

/// A file open for appending.
pub trait AppendFile: Send {
    /// Appends bytes. Not durable before [`AppendFile::sync`].
    fn append(&mut self, bytes: &[u8]) -> Result<(), WorldError>;
    /// On return everything appended before survives a crash.
    fn sync(&mut self) -> Result<(), WorldError>;
    /// Bytes in the file.
    fn len(&self) -> u64;
    /// Whether nothing was ever appended.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts the file to `len` bytes: a torn tail found at start, or a failed append undone.
    fn truncate(&mut self, len: u64) -> Result<(), WorldError>;
}

/// A folder of durable bytes.
///
/// Laws, checked by `testing::store_laws`: what was synced is read back; `replace` shows the old
/// or the new content after a crash, never a mixture; names are `[a-z0-9._-]+`.
pub trait Store: Send + Sync {
    /// Opens a file for appending, creating it when it is missing.
    fn append(&self, name: &str) -> Result<Box<dyn AppendFile>, WorldError>;
    /// Reads `length` bytes from `offset` (fewer at the end of the file).
    fn read_at(&self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, WorldError>;
    /// Bytes in a file, or `None` when there is none.
    fn size(&self, name: &str) -> Result<Option<u64>, WorldError>;
    /// Replaces a file as a whole, atomically and durably.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), WorldError>;
    /// Removes a file if it is there.
    fn remove(&self, name: &str) -> Result<(), WorldError>;
    /// All names, sorted.
    fn list(&self) -> Result<Vec<String>, WorldError>;
}
