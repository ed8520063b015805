//! `headwater embed`: one JSON string a line on stdin → `{"tokens":n,"vector":[…]}` a line on stdout.
//! With `--bench` it measures instead.
//!
//! Lines go through the model in batches, yet each reply line is the same alone or in company: vectors
//! are batch-invariant. A line that is no JSON string ends the command with its number, exit code 2.

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Duration;

use super::output::Output;
use super::{InputError, Models};
use crate::app::{self, Measured};

/// Texts of one batch: enough to feed a model, few enough to answer soon.
const BATCH_TEXTS: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hub name or folder
    #[arg(long, default_value = app::DEFAULT_MODEL)]
    model: String,
    /// full, f32, bf16 or int8, as PRECISION of CREATE MODEL
    #[arg(long, default_value = "full")]
    precision: String,
    /// cpu, auto or cuda:0, as DEVICE of CREATE MODEL
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Adds the token ids
    #[arg(long)]
    ids: bool,
    /// Measures the model on one core or on --device instead: tokens a second, beside what is possible there
    #[arg(long, conflicts_with = "ids")]
    bench: bool,
    /// With --bench: how long
    #[arg(long, default_value_t = 5, requires = "bench", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    models: Models,
}

pub(crate) fn embed(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    if args.bench {
        return bench(&args, output);
    }
    let mut embed = app::embedder(
        &args.model,
        &args.precision,
        &args.device,
        args.models.models.as_deref(),
        args.ids,
    )?;
    let mut batch = Vec::with_capacity(BATCH_TEXTS);
    let mut flush = |batch: &mut Vec<String>| -> anyhow::Result<()> {
        if !batch.is_empty() {
            embed(batch)?
                .iter()
                .try_for_each(|embedded| output.json(embedded))?;
            batch.clear();
        }
        Ok(())
    };
    for (line, number) in std::io::stdin().lock().lines().zip(1u64..) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let text = serde_json::from_str::<String>(&line).map_err(|error| {
            InputError::new(format!("line {number} is no JSON string: {error}"))
                .hint("write each text as one JSON string a line")
        });
        match text {
            Ok(text) => batch.push(text),
            Err(error) => {
                // What came before the bad line is answered.
                flush(&mut batch)?;
                return Err(error.into());
            }
        }
        if batch.len() == BATCH_TEXTS {
            flush(&mut batch)?;
        }
    }
    flush(&mut batch)?;
    Ok(ExitCode::SUCCESS)
}

fn bench(args: &Args, output: &Output) -> anyhow::Result<ExitCode> {
    let time = Duration::from_secs(args.seconds);
    let measured = app::measure(
        &args.model,
        &args.precision,
        &args.device,
        args.models.models.as_deref(),
        time,
    )?;
    if output.is_json {
        output.json(&measured)?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        output.note("not a release build: the figures say little");
    }
    let lines = [
        ("place", measured.place.clone()),
        (
            "speed",
            format!(
                "{:.0} tokens/s, {:.1} texts/s ({} texts, {} tokens in {:.1} s)",
                measured.tokens_per_second,
                measured.texts_per_second,
                measured.texts,
                measured.tokens,
                measured.seconds
            ),
        ),
        ("peak", peak(&measured)),
        (
            "question",
            format!(
                "p50 {:.2} ms, p99 {:.2} ms ({} tokens, text to vector)",
                measured.question_p50_ms, measured.question_p99_ms, measured.question_tokens
            ),
        ),
        (
            "wasted",
            format!(
                "{} tokens beyond the model's window",
                measured.tokens_wasted
            ),
        ),
    ];
    for (topic, text) in lines {
        output.line(&format!("{} {text}", output.bold(&format!("{topic:<9}"))))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn peak(measured: &Measured) -> String {
    match (measured.peak_share, measured.encoder_gflops) {
        (Some(share), Some(gflops)) if measured.devices > 0 => format!(
            "{:.1} % of {:.0} TFLOP/s, a large fp16 product on an H200 (each): {:.1} TFLOP/s in products",
            share * 100.0,
            measured.peak_gflops.unwrap_or_default() / 1e3,
            gflops / 1e3
        ),
        (Some(share), Some(gflops)) => format!(
            "{:.0} % of what the core gives: {gflops:.1} of {:.1} GFLOP/s (product of matrices)",
            share * 100.0,
            measured.peak_gflops.unwrap_or_default()
        ),
        (None, Some(gflops)) => format!("{gflops:.1} GFLOP/s in products of matrices"),
        _ => "no share of it: a table of tokens' vectors has no products of matrices".to_owned(),
    }
}
