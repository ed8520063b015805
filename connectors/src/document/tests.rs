//! Pages, documents and broken ones, with what becomes of them.

use std::io::{Cursor, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lopdf::content::{Content, Operation};
use lopdf::{Document, Object, Stream, dictionary};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

fn read(kind: Kind, content: &[u8]) -> Result<String, String> {
    read_within(Duration::from_secs(30), kind, content)
}

fn read_within(limit: Duration, kind: Kind, content: &[u8]) -> Result<String, String> {
    let extractor = Extractor::in_process().within(limit);
    loop {
        match text(kind, content.to_vec(), &extractor, &Arc::default()) {
            Guarded::Done(found) => return found.map_err(|(bad, _)| bad.on("f").detail),
            // Another test's work is still ending.
            Guarded::Busy => std::thread::sleep(Duration::from_millis(10)),
            Guarded::Stopped => panic!("nothing stops it"),
        }
    }
}

const TOO_SLOW: &str = "the text of file 'f' was not found within 30000 ms (EXTRACT_MS_MAX)";

fn page(html: &str) -> String {
    read(Kind::Html, html.as_bytes()).expect("a page")
}

#[test]
fn kinds_are_known_by_name_and_by_first_bytes() {
    for (name, head, kind) in [
        ("a.md", "", Kind::Plain),
        ("a.HTM", "", Kind::Html),
        ("deep/a.docx", "", Kind::Docx),
        ("a.pdf", "no pdf", Kind::Pdf),
        ("report", "%PDF-1.7", Kind::Pdf),
        ("notes.txt", "%PDF-1.7", Kind::Pdf),
        ("page", "\n<!DOCTYPE html>", Kind::Html),
        ("notes.txt", "<html>", Kind::Plain),
        ("a.zip", "", Kind::Archive(Packing::Zip)),
        ("a.tar.gz", "", Kind::Archive(Packing::TarGz)),
        ("a.md.gz", "", Kind::Archive(Packing::Gz)),
        ("a.jar", "PK\x03\x04", Kind::Plain),
        (".zip", "", Kind::Plain),
    ] {
        assert_eq!(kind_of(name, head.as_bytes()), kind, "{name}");
    }
}

#[test]
fn a_page_keeps_headings_lists_code_and_words() {
    let html = "<!doctype html><html><head><title>Site &amp; more</title><style>b{}</style>\
        <script>if (a < b) { x(\"</p>\") }</script></head><body>\
        <nav><a href=/>Home</a></nav>\
        <h1>Reset  your\n password</h1><p>Open <a href=x>the settings</a>, then press \
        <b>Reset</b> .<br>Wait&nbsp;a&#x20;minute.</p>\
        <ul><li>one<li>two <code> a  b </code>!<ol start=3><li>deep</li></ol></li></ul>\
        <h3>Example</h3><pre class='language-sh'>\nrm  -rf `x`\n  two</pre>\
        <table><tr><th>Key<th>Value</tr><tr><td><p>a</p></td><td>1</td></tr></table>\
        <p># not a heading</p><img src=x alt='A map'><button>Buy</button><p hidden>secret</p>";
    let expected = "# Reset your password\n\nOpen the settings, then press Reset .\nWait a minute.\n\n\
        - one\n- two `a b` !\n  3. deep\n\n### Example\n\n```sh\nrm  -rf `x`\n  two\n```\n\n\
        Key | Value\na | 1\n\n\\# not a heading\n\nA map\n";
    assert_eq!(page(html), expected);
    assert_eq!(
        page("<title>Only a\n title</title><p>text"),
        "# Only a title\n\ntext\n"
    );
    assert_eq!(page(""), "");
    let fenced = page("<pre>a\n```\nb</pre>");
    assert_eq!(fenced, "````\na\n```\nb\n````\n");
}

#[test]
fn a_broken_page_is_read_as_far_as_it_goes() {
    assert_eq!(
        page("<nav><ul><li>menu</ul><p>text"),
        "- menu\n\ntext\n",
        "nav without an end"
    );
    assert_eq!(page("<p>text<script>never ends"), "text\n");
    assert_eq!(page("<p hidden>secret<p>text"), "text\n");
    assert_eq!(
        page("<div><p hidden>secret</div>text"),
        "secret\n\ntext\n",
        "who knows"
    );
    assert_eq!(
        page("</li></ul></h1></pre></code>a<code>b<p>c"),
        "a`b\n\nc\n"
    );
    assert_eq!(page("<pre>open"), "```\nopen\n```\n");
    let deep = "<div><b><ul>".repeat(200_000);
    assert_eq!(page(&format!("{deep}deep")).trim(), "deep");
}

#[test]
fn a_page_says_its_encoding() {
    let latin = b"<meta charset=\"ISO-8859-1\"><p>caf\xe9";
    assert_eq!(read(Kind::Html, latin), Ok("caf\u{e9}\n".to_owned()));
    let http = b"<META http-equiv=Content-Type content='text/html; charset=Shift_JIS'>\x83\x65";
    assert_eq!(read(Kind::Html, http), Ok("\u{30c6}\n".to_owned()));
    let marked = b"\xff\xfe<\0p\0>\0a\0";
    assert_eq!(read(Kind::Html, marked), Ok("a\n".to_owned()));
    assert_eq!(
        read(Kind::Html, b"<meta charset=klingon>a"),
        Err("file 'f' declares the encoding 'klingon', which is not known".to_owned())
    );
    assert_eq!(
        read(Kind::Html, b"<meta charset=euc-jp>\xff"),
        Err("file 'f' declares the encoding EUC-JP, but its bytes are not in it".to_owned())
    );
    assert_eq!(
        read(Kind::Html, b"<p>caf\xe9"),
        Err("file 'f' is not UTF-8 at byte 6".to_owned())
    );
    assert_eq!(
        read(Kind::Plain, b"\xfe\xff\0a"),
        Ok("a".to_owned()),
        "UTF-16 with a mark"
    );
}

/// A zip of these files.
fn zipped(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(*name, SimpleFileOptions::default())
            .expect("begun");
        zip.write_all(text.as_bytes()).expect("written");
    }
    zip.finish().expect("finished").into_inner()
}

const STYLES: &str = "<w:styles>\
    <w:style w:styleId='berschrift1'><w:name w:val='heading 1'/></w:style>\
    <w:style w:styleId='Mine'><w:name w:val='Mine'/><w:basedOn w:val='berschrift1'/></w:style>\
    <w:style w:styleId='Own'><w:name w:val='Own'/><w:pPr><w:outlineLvl w:val='2'/></w:pPr></w:style>\
    <w:style w:styleId='Bullet'><w:pPr><w:numPr><w:numId w:val='3'/></w:numPr></w:pPr></w:style>\
    <w:style w:styleId='Loop'><w:name w:val='Loop'/><w:basedOn w:val='Loop'/></w:style>\
    </w:styles>";

fn docx(body: &str) -> Vec<u8> {
    let document = format!("<?xml version='1.0'?><w:document><w:body>{body}</w:body></w:document>");
    zipped(&[
        ("word/styles.xml", STYLES),
        ("word/document.xml", &document),
    ])
}

#[test]
fn a_docx_keeps_headings_lists_and_tables() {
    let run = |style: &str, text: &str| {
        let style = format!("<w:pPr><w:pStyle w:val='{style}'/></w:pPr>");
        format!("<w:p>{style}<w:r><w:t xml:space='preserve'>{text}</w:t></w:r></w:p>")
    };
    let item = |level: u8, text: &str| {
        format!(
            "<w:p><w:pPr><w:numPr><w:ilvl w:val='{level}'/><w:numId w:val='7'/></w:numPr></w:pPr>\
             <w:r><w:t>{text}</w:t></w:r></w:p>"
        )
    };
    let body = [
        run("berschrift1", "Reset"),
        run("Normal", "A &amp; B&#33; <![CDATA[<c>]]>"),
        item(0, "one"),
        item(1, "deep"),
        run("Bullet", "by style"),
        run("Mine", "By inheritance"),
        run("Own", "By level"),
        run("Loop", "# text"),
        "<w:p><w:r><w:t>left</w:t><w:tab/><w:t>right</w:t><w:br/><w:t>next</w:t></w:r>\
         <w:del><w:r><w:delText>gone</w:delText><w:t>gone</w:t></w:r></w:del>\
         <w:r><w:instrText>PAGE</w:instrText></w:r></w:p>"
            .to_owned(),
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc/>\
         <w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p><w:p><w:r><w:t>c</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
            .to_owned(),
        "<w:p><mc:AlternateContent><mc:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p>\
         </w:txbxContent></mc:Choice><mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback>\
         </mc:AlternateContent><w:r><w:t>anchor</w:t></w:r></w:p>"
            .to_owned(),
    ];
    let expected = "# Reset\n\nA & B! <c>\n\n- one\n  - deep\n- by style\n\n# By inheritance\n\n### By level\n\n\
        \\# text\n\nleft right\nnext\n\na |  | b c\n\nbox\n\nanchor\n";
    assert_eq!(
        read(Kind::Docx, &docx(&body.concat())),
        Ok(expected.to_owned())
    );
}

#[test]
fn a_broken_docx_says_why() {
    let broken = |content: &[u8]| read(Kind::Docx, content).expect_err("no document");
    assert_eq!(
        broken(b"plain"),
        "file 'f' is not a readable DOCX: invalid Zip archive: Could not find EOCD"
    );
    let found = broken(&zipped(&[("word/styles.xml", STYLES)]));
    assert_eq!(
        found,
        "file 'f' is not a readable DOCX: word/document.xml: specified file not found in archive"
    );
    let found = broken(&docx("<w:p></w:r>"));
    let expected = "file 'f' is not a readable DOCX: ill-formed document: expected `</w:p>`, but \
        `</w:r>` was found";
    assert_eq!(found, expected);
    let found = broken(b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1 and more");
    assert_eq!(found, "file 'f' is encrypted");
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let found = broken(&docx(&format!("<w:p><w:t>{long}</w:t></w:p>")));
    let expected = "the text of file 'f' has 8388609 bytes or more; the limit TEXT_BYTES_MAX is \
        8388608";
    assert_eq!(found, expected);
}

/// A document of pages, each given by its content, whose forms are `Fm0`.
fn pdf(pages: &[&str], form: Option<&str>) -> Document {
    let mut document = Document::with_version("1.7");
    let tree = document.new_object_id();
    let font = document.add_object(dictionary! {
        "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica",
        "Encoding" => "WinAnsiEncoding",
    });
    let form_id = document.new_object_id();
    let resources = document.add_object(dictionary! {
        "Font" => dictionary! { "F1" => font },
        "XObject" => dictionary! { "Fm0" => form_id },
    });
    if let Some(form) = form {
        let stream = Stream::new(
            dictionary! { "Type" => "XObject", "Subtype" => "Form", "Resources" => resources },
            form.as_bytes().to_vec(),
        );
        document.objects.insert(form_id, Object::Stream(stream));
    }
    let kids: Vec<Object> = pages
        .iter()
        .map(|content| {
            let stream = Stream::new(dictionary! {}, content.as_bytes().to_vec());
            let content = document.add_object(stream);
            let page = dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content };
            document.add_object(page).into()
        })
        .collect();
    let count = kids.len() as i64;
    let pages = dictionary! {
        "Type" => "Pages", "Kids" => kids, "Count" => count, "Resources" => resources,
    };
    document.objects.insert(tree, Object::Dictionary(pages));
    let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
    document.trailer.set("Root", catalog);
    document
        .trailer
        .set("ID", vec![Object::string_literal("0123456789abcdef"); 2]);
    document
}

fn saved(mut document: Document) -> Vec<u8> {
    document.compress();
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).expect("saved");
    bytes
}

#[test]
fn a_pdf_has_words_lines_and_paragraphs() {
    let page = "BT /F1 12 Tf 72 700 Td (Reset) Tj 80 0 Td (your) Tj ( password) Tj \
        0 -14 TD [(sec)-20(ond)-600(line)] TJ T* (third) Tj 0 -40 Td (New paragraph) Tj ET \
        /Artifact BMC BT /F1 9 Tf 300 20 Td (Page 1) Tj ET EMC";
    let other = "BT /F1 1 Tf 12 0 0 12 72 700 Tm (caf\\351) Tj 12 0 0 12 72 680 Tm (x) Tj ET";
    let document = saved(pdf(&[page, other], None));
    let expected = "Reset your password\nsecond line\nthird\n\nNew paragraph\n\ncaf\u{e9}\nx\n";
    assert_eq!(read(Kind::Pdf, &document), Ok(expected.to_owned()));
}

/// A form that draws itself would recurse without end.
#[test]
fn a_pdf_that_draws_itself_ends() {
    let form = "BT /F1 12 Tf (again) Tj ET /Fm0 Do";
    let text = read(Kind::Pdf, &saved(pdf(&["/Fm0 Do"], Some(form)))).expect("a text");
    assert_eq!(text.matches("again").count(), 12);
    // Ten in each: far too many to draw.
    let form = format!("BT /F1 12 Tf (again) Tj ET {}", "/Fm0 Do ".repeat(10));
    let endless = saved(pdf(&["/Fm0 Do"], Some(&form)));
    let found = read_within(Duration::from_millis(100), Kind::Pdf, &endless);
    assert_eq!(found, Err(TOO_SLOW.to_owned()));
}

#[test]
fn a_broken_pdf_says_why() {
    let broken = |content: &[u8]| read(Kind::Pdf, content).expect_err("no document");
    assert_eq!(
        broken(b"plain"),
        "file 'f' is not a readable PDF: couldn't parse input: invalid file header"
    );
    assert_eq!(
        broken(&saved(pdf(&["0 0 m"], None))),
        "file 'f' has pages, but no text"
    );
    let whole = saved(pdf(&["BT /F1 12 Tf (text) Tj ET"], None));
    for end in [20, whole.len() / 2] {
        let found = broken(&whole[..end]);
        assert!(
            found.starts_with("file 'f' is not a readable PDF: "),
            "{found}"
        );
    }
    assert_eq!(broken(&encrypted("secret")), "file 'f' is encrypted");
    assert_eq!(
        read(Kind::Pdf, &encrypted("")),
        Ok("text\n".to_owned()),
        "to be read by all"
    );
}

fn encrypted(password: &str) -> Vec<u8> {
    use lopdf::{EncryptionState, EncryptionVersion, Permissions};
    let mut document = pdf(&["BT /F1 12 Tf (text) Tj ET"], None);
    let version = EncryptionVersion::V2 {
        document: &document,
        owner_password: "owner",
        user_password: password,
        key_length: 128,
        permissions: Permissions::all(),
    };
    let state = EncryptionState::try_from(version).expect("a key");
    document.encrypt(&state).expect("encrypted");
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).expect("saved");
    bytes
}

/// Law: no bytes end the process, and the same bytes give the same text.
#[test]
fn damaged_documents_do_no_harm() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(20_261_121);
    let whole = [
        (
            Kind::Pdf,
            saved(pdf(
                &["BT /F1 12 Tf (some text) Tj /Fm0 Do ET"],
                Some("(x) Tj"),
            )),
        ),
        (
            Kind::Docx,
            docx("<w:p><w:r><w:t>some text</w:t></w:r></w:p>"),
        ),
        (
            Kind::Html,
            b"<h1>a</h1><pre><code>b</code></pre><ul><li>c".to_vec(),
        ),
    ];
    for round in 0..600 {
        let (kind, mut bytes) = whole[round % whole.len()].clone();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random_range(0..=255),
                1 => bytes.truncate(at.max(1)),
                _ => drop(bytes.splice(at..at, *b"<[(")),
            }
        }
        let (one, other) = (read(kind, &bytes), read(kind, &bytes));
        assert_eq!(one, other, "round {round}");
    }
}

/// What lopdf writes is what it reads; an operation that it makes must be one that we know.
#[test]
fn operations_are_known_by_their_names() {
    let operations = vec![
        Operation::new("BT", vec![]),
        Operation::new("Tf", vec!["F1".into(), 12.into()]),
        Operation::new("TL", vec![14.into()]),
        Operation::new("'", vec![Object::string_literal("one")]),
        Operation::new(
            "\"",
            vec![1.into(), 0.into(), Object::string_literal("two words")],
        ),
        Operation::new("ET", vec![]),
    ];
    let content = Content { operations }.encode().expect("encoded");
    let content = String::from_utf8(content).expect("ASCII");
    let found = read(Kind::Pdf, &saved(pdf(&[&content], None)));
    assert_eq!(found, Ok("one\ntwo words\n".to_owned()));
}

/// Each attribute of a tag is compared with all others: 2 MB of them would take minutes.
#[test]
fn a_tag_of_attributes_ends_with_its_time() {
    let attributes: String = (0..400_000).map(|number| format!("a{number} ")).collect();
    let page = format!("<p {attributes}>text");
    let begun = Instant::now();
    let found = read_within(Duration::from_millis(200), Kind::Html, page.as_bytes());
    assert_eq!(found, Err(TOO_SLOW.to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_stop_ends_what_is_being_read() {
    let attributes: String = (0..400_000).map(|number| format!("a{number} ")).collect();
    let page = format!("<p {attributes}>text").into_bytes();
    let stop: Arc<AtomicBool> = Arc::default();
    let stopper = Arc::clone(&stop);
    let stopped = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        stopper.store(true, Ordering::Relaxed);
    });
    let found = text(Kind::Html, page, &Extractor::in_process(), &stop);
    assert!(matches!(found, Guarded::Stopped), "{found:?}");
    stopped.join().expect("no panic");
}

#[test]
fn a_page_of_too_much_text_is_cut_off() {
    let page = format!("<p>{}", "word ".repeat(TEXT_BYTES_MAX / 2));
    let found = read(Kind::Html, page.as_bytes()).expect_err("too much");
    assert!(found.starts_with("the text of file 'f' has 8"), "{found}");
}

#[test]
fn characters_without_width_do_not_cut_words() {
    assert_eq!(
        page("<p>Sil\u{ad}ben<b>\u{200b}tren</b>nung \u{feff}x<br>y</p>"),
        "Silbentrennung x\ny\n"
    );
    assert_eq!(
        page("<table><tr><td>a<br>b</td><td>c</td></tr></table>"),
        "a b | c\n"
    );
    assert_eq!(
        read(Kind::Plain, b"\xef\xbb\xbf# a"),
        Ok("# a".to_owned()),
        "a byte order mark is no text"
    );
    let page = b"<meta name=description content='charset of it'><meta charset=latin1><p>\xe9";
    assert_eq!(read(Kind::Html, page), Ok("\u{e9}\n".to_owned()));
}

#[test]
fn a_docx_is_bounded() {
    let broken = |body: &str| read(Kind::Docx, &docx(body)).expect_err("bounded");
    let deep = 40;
    let nested = [
        "<w:tr><w:tc>".repeat(deep),
        "<w:p><w:t>x</w:t></w:p>".to_owned(),
        "</w:tc></w:tr>".repeat(deep),
    ];
    assert_eq!(
        read(Kind::Docx, &docx(&nested.concat())),
        Ok("x\n".to_owned())
    );
    let expected = "file 'f' is not a readable DOCX: tables and text boxes are nested more than 64 \
        deep";
    assert_eq!(broken(&"<w:tr><w:tc>".repeat(100_000)), expected);
    assert_eq!(broken(&"<w:p>".repeat(100_000)), expected);
    // Text in a cell and in paragraphs that never end is counted, too.
    let text = format!(
        "<w:r><w:t>{}</w:t></w:r>",
        "x".repeat(TEXT_BYTES_MAX / 2 + 1)
    );
    let cell = format!("<w:tr><w:tc><w:p>{text}</w:p><w:p>{text}</w:p>");
    let expected = "the text of file 'f' has 8388613 bytes or more; the limit TEXT_BYTES_MAX is \
        8388608";
    assert_eq!(broken(&cell), expected);
    let cells = format!("<w:tr>{}", "<w:tc/>".repeat(TEXT_BYTES_MAX / 2));
    assert!(broken(&cells).starts_with("the text of file 'f' has 8388609 bytes"));
    let filled = format!("<w:p/><!--{}-->", " ".repeat(8 * TEXT_BYTES_MAX));
    let expected = "file 'f' is not a readable DOCX: word/document.xml: it has more than 67108864 \
        bytes";
    assert_eq!(broken(&filled), expected);
}

#[test]
fn a_docx_says_where_its_main_part_is() {
    let relation = |kind: &str, target: &str| {
        format!(
            "<Relationships><Relationship Id='r1' Type='http://x/y/{kind}' Target='{target}'/>\
             </Relationships>"
        )
    };
    let document = "<w:document><w:p><w:pPr><w:pStyle w:val='Own'/><w:pPrChange><w:pPr>\
        <w:pStyle w:val='Bullet'/><w:numPr><w:numId w:val='7'/></w:numPr></w:pPr></w:pPrChange></w:pPr>\
        <w:r><w:t>Text</w:t></w:r></w:p></w:document>";
    let content = zipped(&[
        (
            "_rels/.rels",
            &relation("officeDocument", "/word/document2.xml"),
        ),
        (
            "word/_rels/document2.xml.rels",
            &relation("styles", "styles2.xml"),
        ),
        ("word/styles2.xml", STYLES),
        ("word/document2.xml", document),
    ]);
    assert_eq!(read(Kind::Docx, &content), Ok("### Text\n".to_owned()));
}

/// A document whose font is composite; with a table of Unicode when there is one.
fn composite(unicode: Option<&str>) -> Vec<u8> {
    let mut document = pdf(&["BT /F1 12 Tf <002B0048> Tj ET"], None);
    let fonts = document.objects.iter_mut();
    let mut fonts = fonts.filter_map(|(id, object)| {
        let font = object.as_dict_mut().ok()?;
        font.has_type(b"Font").then_some((*id, font))
    });
    let (id, font) = fonts.next().expect("the font");
    font.set("Subtype", "Type0");
    font.set("Encoding", "Identity-H");
    font.set("DescendantFonts", Vec::<Object>::new());
    if let Some(unicode) = unicode {
        let table = document.add_object(Stream::new(dictionary! {}, unicode.as_bytes().to_vec()));
        let font = document.get_dictionary_mut(id).expect("the font");
        font.set("ToUnicode", table);
    }
    saved(document)
}

#[test]
fn numbers_of_glyphs_are_no_letters() {
    let found = read(Kind::Pdf, &composite(None));
    assert_eq!(found, Err("file 'f' has pages, but no text".to_owned()));
    let unicode = "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n\
        /CIDSystemInfo << /Registry (Adobe)/Ordering (UCS)/Supplement 0>> def\n\
        /CMapName /Adobe-Identity-UCS def /CMapType 2 def\n\
        1 begincodespacerange\n<0003><0081>\nendcodespacerange\n\
        2 beginbfrange\n<002B><002B><0048>\n<0048><0048><0065>\nendbfrange\n\
        endcmap CMapName currentdict /CMap defineresource pop end end";
    assert_eq!(
        read(Kind::Pdf, &composite(Some(unicode))),
        Ok("He\n".to_owned())
    );
}

#[test]
fn a_soft_hyphen_at_a_line_s_end_joins_a_word() {
    let mut lines = lines::Lines::default();
    let at = |x: f64, y: f64| lines::Matrix::shift(x, y);
    lines.write("Silben\u{ad}", at(0.0, 100.0), at(40.0, 100.0), 10.0);
    lines.write("trennung co\u{ad}op", at(0.0, 88.0), at(60.0, 88.0), 10.0);
    lines.write("next", at(0.0, 76.0), at(20.0, 76.0), 10.0);
    assert_eq!(lines.finish(), "Silbentrennung co-op\nnext\n");
}
