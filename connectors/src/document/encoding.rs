//! A page's bytes to characters, by the encoding that it declares.
//!
//! Source: the Encoding Standard's names, and the HTML Standard's search in the first bytes, shortened.
//!
//! Limits: a page that declares nothing is UTF-8; nothing is guessed.

use encoding_rs::{Encoding, UTF_8};

use crate::text::BadFile;

/// Where a page must have declared its encoding.
const HEAD_BYTES: usize = 1024;

/// The page's characters, by its byte order mark, by what it declares, or as UTF-8.
pub(super) fn decode(content: &[u8]) -> Result<String, BadFile> {
    let (encoding, skipped) = match Encoding::for_bom(content) {
        Some(marked) => marked,
        None => (declared(content)?.unwrap_or(UTF_8), 0),
    };
    let content = &content[skipped..];
    if encoding == UTF_8 {
        let text = std::str::from_utf8(content);
        let text = text.map_err(|error| BadFile::InvalidUtf8(skipped + error.valid_up_to()))?;
        return Ok(text.to_owned());
    }
    let (text, has_errors) = encoding.decode_without_bom_handling(content);
    match has_errors {
        true => Err(BadFile::WrongEncoding(encoding.name().to_owned())),
        false => Ok(text.into_owned()),
    }
}

/// What `<meta charset=…>`, `<meta … content="…; charset=…">` or `<?xml encoding=…?>` says.
fn declared(content: &[u8]) -> Result<Option<&'static Encoding>, BadFile> {
    let head = String::from_utf8_lossy(&content[..content.len().min(HEAD_BYTES)]);
    let lower = head.to_ascii_lowercase();
    let is_tag = |name: &str| lower.find(name).map(|at| at + name.len());
    // The first that is followed by a value: the word alone may be in a description.
    let behind_meta = is_tag("<meta").and_then(|from| {
        let places = lower[from..].match_indices("charset");
        let mut ends = places.map(|(at, word)| from + at + word.len());
        ends.find(|end| lower[*end..].trim_start().starts_with('='))
    });
    let behind_xml = is_tag("<?xml").and_then(|from| {
        let end = from + lower[from..].find("?>")?;
        let at = lower[from..end].find("encoding")?;
        Some(from + at + "encoding".len())
    });
    let Some(from) = behind_meta.or(behind_xml) else {
        return Ok(None);
    };
    let Some(value) = lower[from..].trim_start().strip_prefix('=') else {
        return Ok(None);
    };
    let label: String = value
        .trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '"' || c == '\'')
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "-_:.+".contains(*c))
        .collect();
    match Encoding::for_label(label.as_bytes()) {
        Some(encoding) if encoding.is_ascii_compatible() => Ok(Some(encoding)),
        // A page whose declaration could be read is not in UTF-16, as browsers know.
        Some(_) => Ok(None),
        None => Err(BadFile::UnknownEncoding(label)),
    }
}
