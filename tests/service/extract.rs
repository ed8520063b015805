//! PDFs are read by processes of the program itself, whose memory is bounded.

use std::path::PathBuf;
use std::time::Duration;

use connectors::files::{Extractor, FilesSource};
use engine::testing::{Recorded, ScriptedSink, SourceRun};

/// A document of these objects, the first of which is its root.
fn document(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"%PDF-1.7\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (number, object) in objects.iter().enumerate() {
        table += &format!("{:010} 00000 n \n", out.len());
        out.extend(format!("{} 0 obj\n", number + 1).into_bytes());
        out.extend_from_slice(object);
        out.extend_from_slice(b"\nendobj\n");
    }
    let begin = out.len();
    out.extend(table.into_bytes());
    let size = objects.len() + 1;
    let end = format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{begin}\n%%EOF\n");
    out.extend(end.into_bytes());
    out
}

fn stream(content: &[u8]) -> Vec<u8> {
    let mut out = format!("<< /Length {} >>\nstream\n", content.len()).into_bytes();
    out.extend_from_slice(content);
    out.extend_from_slice(b"\nendstream");
    out
}

/// One page of this text, in a font in which `A` stands for so many letters.
fn pdf(text: &str, letters: usize) -> Vec<u8> {
    let table = format!(
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n\
         /CIDSystemInfo << /Registry (Adobe)/Ordering (UCS)/Supplement 0>> def\n\
         /CMapName /Adobe-Identity-UCS def /CMapType 2 def\n\
         1 begincodespacerange\n<00><FF>\nendcodespacerange\n\
         1 beginbfrange\n<41><41><{}>\nendbfrange\n\
         endcmap CMapName currentdict /CMap defineresource pop end end",
        "0042".repeat(letters)
    );
    let page = format!("BT /F1 12 Tf ({text}) Tj ET");
    let object = |text: &str| text.as_bytes().to_vec();
    document(&[
        object("<< /Type /Catalog /Pages 2 0 R >>"),
        object("<< /Type /Pages /Kids [3 0 R] /Count 1 >>"),
        object(
            "<< /Type /Page /Parent 2 0 R /Contents 4 0 R \
             /Resources << /Font << /F1 5 0 R >> >> >>",
        ),
        stream(page.as_bytes()),
        object("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>"),
        stream(table.as_bytes()),
    ])
}

#[cfg(target_os = "linux")]
#[test]
fn a_pdf_that_asks_for_all_memory_is_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: Vec<u8>| {
        let new = folder.path().join(".new");
        std::fs::write(&new, content).expect("written");
        std::fs::rename(new, folder.path().join(name)).expect("renamed");
    };
    // 30 MiB that stand for 8 GiB.
    write("bomb.pdf", pdf(&"A".repeat(30 << 20), 256));
    let program = Extractor::program(PathBuf::from(env!("CARGO_BIN_EXE_headwater")));
    let path = folder.path().to_str().expect("UTF-8");
    let source = FilesSource::new(path, "*.pdf").expect("a glob");
    let sink = ScriptedSink::open();
    let source = Box::new(source.extracted_by(program));
    let run = SourceRun::start(source, &sink, Recorded::default());
    assert!(sink.wait(|found| found.dead_letters.len() == 1));
    let letter = sink.recorded().dead_letters.remove(0);
    assert_eq!(
        letter.error.detail,
        "file 'bomb.pdf' is not a readable PDF: its reader failed on it, or needs more than \
         1073741824 bytes of memory (EXTRACT_BYTES_MAX)"
    );
    // The source goes on.
    write("good.pdf", pdf("AA", 2));
    assert!(sink.wait(|found| found.rows.len() == 1));
    let row = sink.recorded().rows.into_values().next().expect("a row");
    let bytes = row.as_bytes();
    assert!(bytes.windows(5).any(|part| part == b"BBBB\n"), "{bytes:?}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sink.recorded().dead_letters.len(), 1, "one a change");
    run.stop();
}
