//! The demo's steps. Each returns what it observed, or an error if it did not observe it; the first
//! error ends the demo, because the steps stand on each other.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use queries::api::Hit;
use serde_json::{Value as Json, json};

use super::observe::{cause, chunks, document, entry, search, texts_embedded, wait_for};
use super::sample::Sample;
use super::{CACHE, SOURCE};
use crate::client::Client;

/// Indexing a sample on a small machine, `--all` included.
const INDEX_LIMIT: Duration = Duration::from_secs(1_800);
/// One change, with room for a loaded machine; the time that it took is what is shown.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Characters of a passage in an answer.
const PASSAGE_CHARS: usize = 240;

/// What a step saw, for people (`detail`) and how long it took.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The step's name.
    pub step: &'static str,
    /// One or more lines.
    pub detail: String,
    /// From the step's action to its observation, milliseconds.
    pub took_ms: f64,
}

/// The demo between steps.
pub struct Demo<'a> {
    client: &'a Client,
    sample: &'a Sample,
    /// Called with each observed step, as it happens.
    report: &'a mut dyn FnMut(&Seen),
    /// Called with progress, many times.
    progress: &'a mut dyn FnMut(&str),
    question: String,
    hits: Vec<Hit>,
    entry: String,
}

/// Runs all steps on a server whose pipeline is [`super::pipeline`] over the sample; returns the
/// question that was asked.
pub fn run(
    client: &Client,
    sample: &Sample,
    report: &mut dyn FnMut(&Seen),
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<String> {
    let question = question_about(sample)?;
    let mut demo = Demo {
        client,
        sample,
        report,
        progress,
        question,
        hits: Vec::new(),
        entry: String::new(),
    };
    demo.indexed()?;
    demo.answered()?;
    demo.cached()?;
    demo.hit()?;
    demo.edited()?;
    demo.deleted()?;
    Ok(demo.question)
}

impl Demo<'_> {
    fn seen(&mut self, step: &'static str, detail: String, took: Duration) {
        (self.report)(&Seen {
            step,
            detail,
            took_ms: took.as_secs_f64() * 1_000.0,
        });
    }

    /// Ready, every file of the sample is a live document with chunks, and every chunk has its vector:
    /// a chunk that came later would end what the next steps saw.
    fn indexed(&mut self) -> anyhow::Result<()> {
        let (client, started) = (self.client, Instant::now());
        let progress = &mut self.progress;
        wait_for("a ready server", INDEX_LIMIT, || {
            let (status, text) = client.get_text("/ready")?;
            if status == 200 {
                return Ok(Ok(()));
            }
            let problem: Json = serde_json::from_str(&text).unwrap_or_default();
            let reasons = problem["detail"].as_str().unwrap_or("not ready").to_owned();
            progress(&reasons);
            Ok(Err(reasons))
        })?;
        let mut all_chunks = 0;
        for (number, file) in self.sample.files.iter().enumerate() {
            (self.progress)(&format!(
                "looking: {number} of {} files",
                self.sample.files.len()
            ));
            all_chunks += wait_for(&format!("document {file}"), INDEX_LIMIT, || {
                Ok(match document(client, file)? {
                    Some(document) if chunks(&document) > 0 => Ok(chunks(&document)),
                    Some(_) => Err("a document without chunks".to_owned()),
                    None => Err("no such document".to_owned()),
                })
            })?;
        }
        let (question, progress) = (&self.question, &mut self.progress);
        wait_for("the last vector", INDEX_LIMIT, || {
            let found = search(client, question, "keyword", 1)?;
            if found.pending == 0 {
                return Ok(Ok(()));
            }
            let waiting = format!("{} documents wait for their vectors", found.pending);
            progress(&waiting);
            Ok(Err(waiting))
        })?;
        let (took, files) = (started.elapsed(), self.sample.files.len());
        let embedded = texts_embedded(client)?;
        let detail = format!(
            "{files} of {files} files live, {all_chunks} chunks, {embedded} texts embedded"
        );
        self.seen("files indexed", detail, took);
        Ok(())
    }

    /// Each citation is checked: the file's own bytes at its range are its text.
    fn answered(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let reply = search(self.client, &self.question, "hybrid", 5)?;
        let took = started.elapsed();
        ensure!(
            !reply.hits.is_empty(),
            "the question \"{}\" found nothing",
            self.question
        );
        for hit in &reply.hits {
            let bytes = std::fs::read(self.sample.root().join(key_of(hit)?))?;
            let cited = bytes.get(hit.range.0 as usize..hit.range.1 as usize);
            let text = hit.text.as_deref().unwrap_or_default();
            ensure!(
                cited == Some(text.as_bytes()),
                "chunk {} is not its file's text",
                hit.chunk
            );
        }
        let mut lines = vec![format!("“{}” as of {}", self.question, reply.as_of)];
        for (hit, n) in reply.hits.iter().zip(1..) {
            let (from, to) = hit.range;
            lines.push(format!(
                "[{n}] {} v{} bytes {from}–{to}, score {:.3}: {}",
                key_of(hit)?,
                hit.document.version,
                hit.score,
                passage(hit, 90)
            ));
        }
        self.hits = reply.hits;
        self.seen("question answered with citations", lines.join("\n"), took);
        Ok(())
    }

    /// Look-up misses and leases; the answer is stored under the lease.
    fn cached(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let miss = self.look_up()?;
        ensure!(
            miss["hit"] == false,
            "the cache already has an answer: {miss}"
        );
        let hits: Vec<Hit> = serde_json::from_value(miss["hits"].clone())?;
        ensure!(!hits.is_empty(), "the look-up's retrieval found nothing");
        let quoted: Vec<String> = hits
            .iter()
            .take(2)
            .zip(1..)
            .map(|(hit, n)| format!("{} [{n}]", passage(hit, PASSAGE_CHARS)))
            .collect();
        let citations: Vec<&str> = hits.iter().take(2).map(|hit| &*hit.chunk).collect();
        let body =
            json!({ "lease": miss["lease"], "answer": quoted.join("\n"), "citations": citations });
        let stored: Json = self
            .client
            .post(&format!("/v1/caches/{CACHE}/store"), &body)?;
        let took = started.elapsed();
        self.entry = stored["entry"]
            .as_str()
            .context("the store named no entry")?
            .to_owned();
        let (entry, count) = (&self.entry, citations.len());
        let detail = format!("missed, stored as {entry} with {count} citations");
        self.hits = hits;
        self.seen("answer cached", detail, took);
        Ok(())
    }

    fn hit(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let reply = self.look_up()?;
        let took = started.elapsed();
        let is_ours = reply["hit"] == true && reply["entry"] == *self.entry;
        ensure!(is_ours, "the same question did not hit: {reply}");
        let detail = format!(
            "similarity {}, as of {}",
            reply["similarity"], reply["as_of"]
        );
        self.seen("same question hit", detail, took);
        Ok(())
    }

    /// One word goes into the cited passage of one file. Then: the entry is retracted, the word is
    /// found, the question misses, and the texts embedded are counted against the file's chunks.
    fn edited(&mut self) -> anyhow::Result<()> {
        let client = self.client;
        let cited = self.hits[0].clone();
        let key = key_of(&cited)?.to_owned();
        let path = self.sample.root().join(&key);
        let before = document(client, &key)?.with_context(|| format!("{key} is not live"))?;
        let embedded_before = texts_embedded(client)?;
        let word = format!("demoword{}", std::process::id());
        let text = std::fs::read_to_string(&path)?;
        let edited = insert_word(
            &text,
            (cited.range.0 as usize, cited.range.1 as usize),
            &word,
        );

        let started = Instant::now();
        std::fs::write(&path, edited).with_context(|| format!("cannot edit {}", path.display()))?;
        let entry_id = self.entry.clone();
        let cause = wait_for("the entry's retraction", CHANGE_LIMIT, || {
            let Some(entry) = entry(client, &entry_id)? else {
                bail!("the entry has gone without a cause")
            };
            Ok(cause(&entry).map(str::to_owned).ok_or(entry.to_string()))
        })?;
        self.seen(
            "cited file edited: entry retracted",
            format!("{key}: cause {cause}"),
            started.elapsed(),
        );

        let version = wait_for("the new text", CHANGE_LIMIT, || {
            let found = search(client, &word, "keyword", 3)?;
            let hit = found
                .hits
                .iter()
                .find(|hit| hit.text.as_deref().is_some_and(|t| t.contains(&word)));
            Ok(match hit {
                Some(hit) if found.pending == 0 => Ok(hit.document.version),
                Some(_) => Err("the text, still without its vector".to_owned()),
                None => Err(format!("{} other hits", found.hits.len())),
            })
        })?;
        let took = started.elapsed();
        let old = cited.document.version;
        ensure!(
            version > old,
            "version {version} is not after version {old}"
        );
        self.seen(
            "new text found",
            format!("\"{word}\" in {key}, version {version} after {old}"),
            took,
        );

        let (embedded, live) = (texts_embedded(client)?, document(client, &key)?);
        let live = live.with_context(|| format!("{key} is not live after its edit"))?;
        let (again, whole) = (embedded - embedded_before, chunks(&live));
        ensure!(
            again >= 1,
            "no chunk was embedded, though the text has changed"
        );
        ensure!(
            again <= 2 || again < whole as u64,
            "all {whole} chunks were embedded again"
        );
        let detail = format!(
            "{again} of {whole} chunks ({} before the edit)",
            chunks(&before)
        );
        self.seen("embedded again", detail, started.elapsed());

        let reply = self.look_up()?;
        ensure!(
            reply["hit"] == false,
            "a retracted answer was served: {reply}"
        );
        Ok(())
    }

    /// Another file than the edited one, so that each step shows one thing.
    fn deleted(&mut self) -> anyhow::Result<()> {
        let client = self.client;
        let edited = key_of(&self.hits[0])?;
        let mut others = self
            .hits
            .iter()
            .filter_map(|hit| key_of(hit).ok())
            .filter(|key| *key != edited);
        let other = others.next().or_else(|| {
            self.sample
                .files
                .iter()
                .map(String::as_str)
                .find(|file| *file != edited)
        });
        let key = other.context("the sample has one file only")?.to_owned();
        ensure!(
            document(client, &key)?.is_some(),
            "{key} is not live before it is deleted"
        );
        let started = Instant::now();
        std::fs::remove_file(self.sample.root().join(&key))?;
        wait_for("the document's end", CHANGE_LIMIT, || {
            Ok(document(client, &key)?
                .map_or(Ok(()), |live| Err(format!("version {}", live["version"]))))
        })?;
        let took = started.elapsed();
        let found = search(client, &self.question, "hybrid", 50)?;
        let ghosts = found
            .hits
            .iter()
            .filter(|hit| key_of(hit).is_ok_and(|found| found == key));
        let ghosts = ghosts.count();
        ensure!(
            ghosts == 0,
            "{ghosts} chunks of the deleted file are still found"
        );
        self.seen(
            "file deleted: gone",
            format!("{key}: not a document, none of its chunks found"),
            took,
        );
        Ok(())
    }

    fn look_up(&self) -> anyhow::Result<Json> {
        self.client.post(
            &format!("/v1/caches/{CACHE}/lookup"),
            &json!({ "question": self.question }),
        )
    }
}

fn key_of(hit: &Hit) -> anyhow::Result<&str> {
    ensure!(
        hit.document.source == SOURCE,
        "a hit of another source: {}",
        hit.document.source
    );
    hit.document
        .key
        .as_str()
        .context("a file's key is its path")
}

/// The passage's words in one line.
fn passage(hit: &Hit, most: usize) -> String {
    let words: Vec<&str> = hit
        .text
        .as_deref()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    words.join(" ").chars().take(most).collect()
}

/// What to ask: about the first crate whose README is long enough to be worth it, otherwise about the
/// first heading there is.
fn question_about(sample: &Sample) -> anyhow::Result<String> {
    let mut fallback = None;
    for file in &sample.files {
        let text = std::fs::read_to_string(sample.root().join(file))?;
        let name = file.rsplit('/').next().unwrap_or(file).to_lowercase();
        let folder = file.split('/').next().filter(|folder| *folder != file);
        if let Some(folder) = folder.filter(|_| name.starts_with("readme") && text.len() >= 2_000) {
            return Ok(format!(
                "What is {} for, and how do I use it?",
                without_version(folder)
            ));
        }
        let heading = text.lines().find_map(|line| line.strip_prefix('#'));
        let heading = heading
            .map(|h| h.trim_matches(['#', ' ']).to_owned())
            .filter(|h| h.len() > 3);
        fallback =
            fallback.or(heading.map(|heading| format!("What is there to know about {heading}?")));
    }
    Ok(fallback.unwrap_or_else(|| "What are these documents about?".to_owned()))
}

/// `serde_json-1.0.154` → `serde_json`
fn without_version(folder: &str) -> &str {
    match folder.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => folder,
    }
}

/// The text with a word more, put after the word nearest to the middle of a range of bytes, so that
/// it changes the chunk there and no other.
fn insert_word(text: &str, (from, to): (usize, usize), word: &str) -> String {
    let (from, to) = (from.min(text.len()), to.min(text.len()));
    let middle = (from + to) / 2;
    let gaps = text.char_indices().filter(|(at, c)| {
        (from..to).contains(at) && *c == ' ' && text[..*at].ends_with(|c: char| c.is_alphabetic())
    });
    let nearest = gaps.map(|(at, _)| at).min_by_key(|at| at.abs_diff(middle));
    // A range without a gap is one long word: then the new one goes before it.
    let at = nearest.unwrap_or(from);
    let separator = if nearest.is_some() {
        (" ", "")
    } else {
        ("", " ")
    };
    format!(
        "{}{}{word}{}{}",
        &text[..at],
        separator.0,
        separator.1,
        &text[at..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_goes_into_the_middle_of_the_range_and_nowhere_else() {
        let text = "zero one two three four five";
        assert_eq!(
            insert_word(text, (5, 19), "NEW"),
            "zero one two NEW three four five"
        );
        assert_eq!(insert_word("é-é-é", (0, 8), "NEW"), "NEW é-é-é");
        assert_eq!(insert_word("", (0, 0), "NEW"), "NEW ");
    }

    #[test]
    fn a_crate_is_named_without_its_version() {
        assert_eq!(without_version("serde_json-1.0.154"), "serde_json");
        assert_eq!(without_version("futures-util"), "futures-util");
    }
}
