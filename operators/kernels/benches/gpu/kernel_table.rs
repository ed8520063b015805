//! Every kernel of a pass by events, beside the roof that it is under.

use kernels::cuda::batch::BUCKETS;
use kernels::cuda::device::{Arg, Launch};
use kernels::cuda::encoder::Recipe;
use kernels::weights::{BertConfig, Weights};

use crate::passes::{one_pass, timed};
use crate::{ROUNDS, operations, peak, peak_bytes};

/// A kernel's share of the roof that it is under: (what the roof is, seconds at the roof).
pub fn roof(launch: &Launch, config: &BertConfig, lengths: &[usize]) -> (&'static str, f64) {
    let (rows, hidden) = (
        lengths.iter().sum::<usize>() as f64,
        config.hidden_size as f64,
    );
    let sizes = launch.args().iter().filter_map(|arg| match arg {
        Arg::Int(int) => Some(f64::from(*int)),
        _ => None,
    });
    let sizes: Vec<f64> = sizes.collect();
    let squares: f64 = lengths.iter().map(|&s| (s * s) as f64).sum();
    let moved =
        |rows_of_hidden: f64| ("bytes", 2.0 * rows * hidden * rows_of_hidden / peak_bytes());
    match launch.kernel() {
        // Of bytes the tensor cores make twice as many. The size is the inner width …
        name if name.starts_with("feed_int8") => {
            ("operations", 2.0 * rows * sizes[0] * hidden / peak())
        }
        // … or the sizes are inputs and outputs.
        name if name.contains("int8_hopper") => ("operations", rows * sizes[0] * sizes[1] / peak()),
        name if name.starts_with("linear") => {
            ("operations", 2.0 * rows * sizes[0] * sizes[1] / peak())
        }
        name if name.starts_with("join") => ("operations", 2.0 * rows * sizes[0] * hidden / peak()),
        // The size is the inner width.
        name if name.starts_with("feed") => ("operations", 4.0 * rows * sizes[0] * hidden / peak()),
        name if name.starts_with("attention") => ("operations", 4.0 * hidden * squares / peak()),
        // Three tables read, one row written.
        "embed_f16" => moved(4.0),
        // The same, and a row of bytes: half a row.
        "embed_int8" => moved(4.5),
        "add_norm_int8" => moved(3.5),
        // State and sum read, state written.
        "add_norm_f16" => moved(3.0),
        _ => moved(1.0),
    }
}

/// Every kernel of one pass by events, by name and sizes, with its share of its roof.
pub fn kernel_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let lengths = [256; 32];
    let (mut device, launches) = one_pass(weights, recipe, BUCKETS[5], &lengths);
    let times = timed(&mut device, &launches, ROUNDS);
    struct Row {
        kernel: &'static str,
        grid: String,
        times: usize,
        ms: f64,
        roof: (&'static str, f64),
    }
    let mut rows: Vec<Row> = Vec::new();
    for (launch, ms) in launches.iter().zip(times) {
        let (grid, roof) = (
            format!("{:?}", launch.grid()),
            roof(launch, config, &lengths),
        );
        let is_same =
            |row: &&mut Row| row.kernel == launch.kernel() && row.grid == grid && row.roof == roof;
        match rows.iter_mut().find(is_same) {
            Some(row) => (row.times, row.ms) = (row.times + 1, row.ms + ms),
            None => rows.push(Row {
                kernel: launch.kernel(),
                grid,
                times: 1,
                ms,
                roof,
            }),
        }
    }
    let sum: f64 = rows.iter().map(|row| row.ms).sum();
    println!("\n{name}, {recipe}: one pass over 32 texts of 256 tokens, by events: {sum:.3} ms");
    let share = operations(config, &lengths) / (sum / 1e3) / peak();
    println!(
        "(events add about 2 µs a launch; {:.1}% of peak so measured)",
        share * 100.0
    );
    println!(
        "{:<24} {:<16} {:>6} {:>10} {:>7} {:>8}  of its roof",
        "kernel", "grid", "times", "ms", "share", "roof"
    );
    for row in rows {
        let (what, seconds) = row.roof;
        println!(
            "{:<24} {:<16} {:>6} {:>10.4} {:>6.1}% {:>7.1}%  {what}",
            row.kernel,
            row.grid,
            row.times,
            row.ms,
            row.ms / sum * 100.0,
            seconds * row.times as f64 / (row.ms / 1e3) * 100.0
        );
    }
}
