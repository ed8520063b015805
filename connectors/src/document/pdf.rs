//! PDF to text: the pages' words in the order in which they are drawn.
//!
//! Idea: `lopdf` reads the file's structure and the fonts' encodings; the drawing of a page is followed
//! here, because words, lines and paragraphs of a PDF are gaps between characters only.
//!
//! ```text
//! bytes ─ lopdf ─▶ pages ─ content ─▶ Run: matrices, font ─ show ─▶ Lines: gaps ─▶ text
//!                             └── Do: a form is followed, at most FORMS_MAX deep
//! ```
//!
//! Source: ISO 32000-1, 8.3 (coordinates), 9.4 (text). Invariants: the nesting of forms, the bytes of a
//! stream that we draw and the time are bounded; ligatures are letters; what is marked as an artifact (running
//! heads, page numbers) is no text.
//!
//! Limits: no headings and no tables; columns follow the order of drawing; a font without a known
//! encoding gives nothing, and if that is all, or if pages are pictures, the file has no text. `lopdf` does
//! not bound its memory: object streams, tables of Unicode and strings may ask for any amount, which is
//! why this runs in a process of its own ([`super::process`]).

use std::collections::HashMap;
use std::rc::Rc;

use engine::limits::TEXT_BYTES_MAX;
use lopdf::content::{Content, Operation};
use lopdf::{Dictionary, Document, Encoding, Error, LoadOptions, Object, ObjectId};

use super::guard::Clock;
use super::lines::{Lines, Matrix};
use super::widths::{Widths, number, resolved};
use crate::text::BadFile;

/// Bytes that one stream may unpack to.
const STREAM_BYTES_MAX: usize = 32 << 20;
/// Forms drawn within forms.
const FORMS_MAX: usize = 12;
/// Saved states: more are not restored.
const SAVED_MAX: usize = 1_024;
/// Operations between two looks at the clock.
const CLOCK_OPERATIONS: u64 = 1_024;
/// The kind of file, for errors.
const FORMAT: &str = "PDF";

/// The text of a document. Errors: [`BadFile`].
pub(super) fn text(content: &[u8], clock: &Clock) -> Result<String, BadFile> {
    let options = LoadOptions {
        max_decompressed_size: Some(STREAM_BYTES_MAX),
        ..LoadOptions::default()
    };
    let mut document = Document::load_mem_with_options(content, options).map_err(broken)?;
    if document.is_encrypted() {
        return Err(BadFile::Encrypted);
    }
    prefer_unicode(&mut document);
    let mut reader = Reader {
        document: &document,
        fonts: HashMap::new(),
        lines: Lines::default(),
        operations: 0,
        clock,
    };
    let mut pages = 0;
    for page in document.page_iter() {
        reader.page(page)?;
        pages += 1;
    }
    let text = reader.lines.finish();
    match (text.is_empty(), pages) {
        (true, 0) => Err(BadFile::Broken {
            format: FORMAT.into(),
            reason: "it has no pages".to_owned(),
        }),
        (true, _) => Err(BadFile::NoText),
        _ => Ok(text),
    }
}

fn broken(error: Error) -> BadFile {
    if matches!(error, Error::InvalidPassword | Error::Decryption(_)) {
        return BadFile::Encrypted;
    }
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        reason.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    BadFile::Broken {
        format: FORMAT.into(),
        reason,
    }
}

/// Encodings of a font's own glyph names, or of numbers of its glyphs, say less than its table of Unicode,
/// where it has one.
fn prefer_unicode(document: &mut Document) {
    let is_own = |font: &Dictionary| {
        let behind = |key: &[u8]| font.get(key).ok().and_then(|it| resolved(document, it));
        let is_stream = behind(b"ToUnicode").is_some_and(|it| it.as_stream().is_ok());
        let is_table = behind(b"Encoding").is_some_and(|it| it.as_dict().is_ok());
        font.has_type(b"Font") && is_stream && (is_table || font.has(b"DescendantFonts"))
    };
    let fonts = document
        .objects
        .iter()
        .filter(|(_, object)| object.as_dict().is_ok_and(is_own));
    let fonts: Vec<ObjectId> = fonts.map(|(id, _)| *id).collect();
    for id in fonts {
        if let Ok(font) = document.get_dictionary_mut(id) {
            font.remove(b"Encoding");
        }
    }
}

/// How a font's codes become characters. The codes of a composite font are numbers of its glyphs: with an
/// encoding of single bytes they would be other letters.
fn encoding<'a>(document: &'a Document, font: &'a Dictionary) -> Option<Encoding<'a>> {
    let encoding = font.get_font_encoding_with_limit(document, STREAM_BYTES_MAX);
    encoding.ok().filter(|encoding| match encoding {
        Encoding::OneByteEncoding(_) | Encoding::Differences(_) => !font.has(b"DescendantFonts"),
        _ => true,
    })
}

struct Font<'a> {
    encoding: Option<Encoding<'a>>,
    widths: Widths,
}

/// What `q` saves.
#[derive(Clone)]
struct State<'a> {
    matrix: Matrix,
    font: Option<Rc<Font<'a>>>,
    size: f64,
    spacing: f64,
    word_spacing: f64,
    stretch: f64,
    leading: f64,
    rise: f64,
}

struct Reader<'a> {
    document: &'a Document,
    fonts: HashMap<ObjectId, Rc<Font<'a>>>,
    lines: Lines,
    operations: u64,
    clock: &'a Clock,
}

/// One content stream as far as it is drawn.
struct Run<'a, 'r> {
    resources: &'r [&'a Dictionary],
    state: State<'a>,
    saved: Vec<State<'a>>,
    text: Matrix,
    line: Matrix,
    /// Open marked content: whether each is an artifact.
    marks: Vec<bool>,
}

impl<'a> Reader<'a> {
    fn page(&mut self, page: ObjectId) -> Result<(), BadFile> {
        let document = self.document;
        let (own, inherited) = document.get_page_resources(page).map_err(broken)?;
        let inherited = inherited
            .iter()
            .filter_map(|id| document.get_dictionary(*id).ok());
        let resources: Vec<&Dictionary> = own.into_iter().chain(inherited).collect();
        let content = document.get_page_content_with_limit(page, STREAM_BYTES_MAX);
        let state = State {
            matrix: Matrix::ONE,
            font: None,
            size: 0.0,
            spacing: 0.0,
            word_spacing: 0.0,
            stretch: 1.0,
            leading: 0.0,
            rise: 0.0,
        };
        self.draw(&content.map_err(broken)?, &resources, state, 0)?;
        self.lines.end_page();
        Ok(())
    }

    fn draw(
        &mut self,
        content: &[u8],
        resources: &[&'a Dictionary],
        state: State<'a>,
        depth: usize,
    ) -> Result<(), BadFile> {
        let mut run = Run {
            resources,
            state,
            saved: Vec::new(),
            text: Matrix::ONE,
            line: Matrix::ONE,
            marks: Vec::new(),
        };
        for operation in Content::<Vec<Operation>>::decode_iter(content) {
            // A stream that breaks off has said what it has said.
            let Ok(operation) = operation else {
                break;
            };
            self.operations += 1;
            if self.operations.is_multiple_of(CLOCK_OPERATIONS) {
                self.clock.look()?;
            }
            if self.lines.out.len() > TEXT_BYTES_MAX {
                return Err(BadFile::TextTooLarge(self.lines.out.len() as u64));
            }
            match &*operation.operator {
                "Do" => self.form(&run, &operation, depth)?,
                "Tf" => {
                    let name = operation
                        .operands
                        .first()
                        .and_then(|name| name.as_name().ok());
                    run.state.font = name.and_then(|name| self.font(run.resources, name));
                    run.state.size = self.numbers(&operation).last().copied().unwrap_or(0.0);
                }
                "Tj" | "TJ" | "'" | "\"" => self.show(&mut run, &operation),
                _ => {
                    let numbers = self.numbers(&operation);
                    run.apply(&operation, &numbers);
                }
            }
        }
        Ok(())
    }

    fn numbers(&self, operation: &Operation) -> Vec<f64> {
        let operands = operation.operands.iter();
        operands
            .filter_map(|operand| number(self.document, operand))
            .collect()
    }

    /// The resource of this kind and name.
    fn resource(
        &self,
        resources: &[&'a Dictionary],
        kind: &[u8],
        name: &[u8],
    ) -> Option<(Option<ObjectId>, &'a Object)> {
        resources.iter().find_map(|resources| {
            let all = resolved(self.document, resources.get(kind).ok()?)?
                .as_dict()
                .ok()?;
            self.document.dereference(all.get(name).ok()?).ok()
        })
    }

    fn font(&mut self, resources: &[&'a Dictionary], name: &[u8]) -> Option<Rc<Font<'a>>> {
        let (id, font) = self.resource(resources, b"Font", name)?;
        if let Some(known) = id.and_then(|id| self.fonts.get(&id)) {
            return Some(Rc::clone(known));
        }
        let font = font.as_dict().ok()?;
        let font = Rc::new(Font {
            encoding: encoding(self.document, font),
            widths: Widths::of(self.document, font),
        });
        if let Some(id) = id {
            self.fonts.insert(id, Rc::clone(&font));
        }
        Some(font)
    }

    /// Draws a form; pictures are none.
    fn form(
        &mut self,
        run: &Run<'a, '_>,
        operation: &Operation,
        depth: usize,
    ) -> Result<(), BadFile> {
        let name = operation
            .operands
            .first()
            .and_then(|name| name.as_name().ok());
        let form = name.and_then(|name| self.resource(run.resources, b"XObject", name));
        let Some(Ok(form)) = form.map(|(_, form)| form.as_stream()) else {
            return Ok(());
        };
        let subtype = form.dict.get(b"Subtype").and_then(Object::as_name);
        let is_form = subtype.is_ok_and(|subtype| subtype == b"Form");
        if !is_form || depth >= FORMS_MAX || run.is_artifact() {
            return Ok(());
        }
        let Ok(content) = form.decompressed_content_with_limit(STREAM_BYTES_MAX) else {
            return Ok(());
        };
        let own = form.dict.get(b"Resources").ok();
        let own = own.and_then(|own| resolved(self.document, own)?.as_dict().ok());
        let resources: Vec<&Dictionary> = match own {
            Some(own) => vec![own],
            None => run.resources.to_vec(),
        };
        let mut state = run.state.clone();
        let matrix = form
            .dict
            .get(b"Matrix")
            .ok()
            .and_then(|matrix| resolved(self.document, matrix));
        let matrix = matrix
            .and_then(|matrix| matrix.as_array().ok())
            .map(|numbers| {
                let numbers = numbers.iter().filter_map(|n| number(self.document, n));
                numbers.collect::<Vec<f64>>()
            });
        if let Some(matrix) = matrix.and_then(|numbers| Matrix::of(&numbers)) {
            state.matrix = matrix.then(state.matrix);
        }
        self.draw(&content, &resources, state, depth + 1)
    }

    fn show(&mut self, run: &mut Run<'a, '_>, operation: &Operation) {
        let operands = &operation.operands;
        if let ("\"", [word, character, ..]) = (&*operation.operator, &operands[..]) {
            run.state.word_spacing = number(self.document, word).unwrap_or(0.0);
            run.state.spacing = number(self.document, character).unwrap_or(0.0);
        }
        if matches!(&*operation.operator, "'" | "\"") {
            run.next_line(0.0, -run.state.leading);
        }
        match operands.last() {
            Some(Object::String(codes, _)) => self.write(run, codes),
            Some(Object::Array(parts)) => {
                for part in parts {
                    match part {
                        Object::String(codes, _) => self.write(run, codes),
                        _ => {
                            let back = number(self.document, part).unwrap_or(0.0) / 1_000.0;
                            run.advance(-back * run.state.size * run.state.stretch);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, run: &mut Run<'a, '_>, codes: &[u8]) {
        let Some(font) = run.state.font.clone() else {
            return;
        };
        let (width, count, blanks) = font.widths.advance(codes);
        let from = run.place();
        let State {
            size,
            spacing,
            word_spacing,
            stretch,
            ..
        } = run.state;
        let advance =
            width / 1_000.0 * size + spacing * count as f64 + word_spacing * blanks as f64;
        run.advance(advance * stretch);
        if run.is_artifact() {
            return;
        }
        let mut text = String::new();
        if let Some(encoding) = &font.encoding
            && encoding.write_to_string(codes, &mut text).is_ok()
        {
            self.lines.write(&text, from, run.place(), size);
        }
    }
}

impl Run<'_, '_> {
    fn is_artifact(&self) -> bool {
        self.marks.contains(&true)
    }

    /// Text space on the page.
    fn place(&self) -> Matrix {
        Matrix::shift(0.0, self.state.rise)
            .then(self.text)
            .then(self.state.matrix)
    }

    fn advance(&mut self, by: f64) {
        self.text = Matrix::shift(by, 0.0).then(self.text);
    }

    fn next_line(&mut self, x: f64, y: f64) {
        self.line = Matrix::shift(x, y).then(self.line);
        self.text = self.line;
    }

    fn apply(&mut self, operation: &Operation, numbers: &[f64]) {
        let first = numbers.first().copied().unwrap_or(0.0);
        let state = &mut self.state;
        match (&*operation.operator, numbers) {
            ("q", _) if self.saved.len() < SAVED_MAX => self.saved.push(state.clone()),
            ("Q", _) => *state = self.saved.pop().unwrap_or_else(|| state.clone()),
            ("cm", numbers) => {
                if let Some(matrix) = Matrix::of(numbers) {
                    state.matrix = matrix.then(state.matrix);
                }
            }
            ("BT", _) => (self.text, self.line) = (Matrix::ONE, Matrix::ONE),
            ("Tm", numbers) => {
                if let Some(matrix) = Matrix::of(numbers) {
                    (self.text, self.line) = (matrix, matrix);
                }
            }
            ("Td", [x, y]) => self.next_line(*x, *y),
            ("TD", [x, y]) => {
                state.leading = -y;
                self.next_line(*x, *y);
            }
            ("T*", _) => {
                let leading = state.leading;
                self.next_line(0.0, -leading);
            }
            ("TL", _) => state.leading = first,
            ("Tc", _) => state.spacing = first,
            ("Tw", _) => state.word_spacing = first,
            ("Tz", _) => state.stretch = first / 100.0,
            ("Ts", _) => state.rise = first,
            ("BMC" | "BDC", _) if self.marks.len() < SAVED_MAX => {
                let tag = operation
                    .operands
                    .first()
                    .and_then(|tag| tag.as_name().ok());
                self.marks.push(tag == Some(b"Artifact"));
            }
            ("EMC", _) => {
                self.marks.pop();
            }
            _ => {}
        }
    }
}
