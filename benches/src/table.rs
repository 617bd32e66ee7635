//! Shows the figures: the median of the rounds, and how much of plain TCP it is.
//!
//! Called by `main.rs`.

use crate::paths::{Figures, Paths, Round};

/// A column: its head, its figure, and how the figure is written.
type Column = (&'static str, fn(&Figures) -> f64, fn(f64) -> String);

const COLUMNS: [Column; 5] = [
    (
        "bulk Gb/s",
        |f| f.gigabits_per_second,
        |v| format!("{v:.2}"),
    ),
    (
        "req/s, 32 conn",
        |f| f.requests_per_second,
        |v| format!("{v:.0}"),
    ),
    (
        "new conn/s",
        |f| f.connections_per_second,
        |v| format!("{v:.0}"),
    ),
    ("p50 us, 1 conn", |f| f.p50_us, |v| format!("{v:.1}")),
    (
        "proxy CPU-s/GB",
        |f| f.cpu_per_gigabyte,
        |v| {
            if v < 0.005 {
                "-".to_owned()
            } else {
                format!("{v:.2}")
            }
        },
    ),
];
/// Columns whose ratio to plain TCP means something.
const COMPARED: usize = 4;
const NAME: usize = 26;
const CELL: usize = 24;

/// The table as text.
pub(crate) fn render(paths: &Paths, rounds: &[Round]) -> String {
    let mut text = format!("\n{:NAME$}", "");
    for (head, _, _) in COLUMNS {
        text.push_str(&format!("{head:>CELL$}"));
    }
    text.push('\n');
    for (index, name) in paths.names().into_iter().enumerate() {
        text.push_str(&format!("{name:NAME$}"));
        for (_, figure, write) in COLUMNS {
            let values = column(rounds, index, figure);
            let cell = format!(
                "{} [{}-{}]",
                write(median(&values)),
                write(least(&values)),
                write(most(&values))
            );
            text.push_str(&format!("{cell:>CELL$}"));
        }
        text.push('\n');
        if let Some(plain) = paths.plain_of(index) {
            text.push_str(&format!("{:NAME$}", "  part of plain TCP"));
            for (_, figure, _) in COLUMNS.iter().take(COMPARED) {
                let of_plain = column(rounds, plain, *figure);
                let parts: Vec<f64> = column(rounds, index, *figure)
                    .iter()
                    .zip(&of_plain)
                    .map(|(a, b)| a / b)
                    .collect();
                let cell = format!(
                    "{:.2} [{:.2}-{:.2}]",
                    median(&parts),
                    least(&parts),
                    most(&parts)
                );
                text.push_str(&format!("{cell:>CELL$}"));
            }
            text.push('\n');
        }
    }
    text.push_str("\nMedian of the rounds, in brackets the least and the most. Requests and answers are 1 KiB.\n");
    text
}

fn column(rounds: &[Round], path: usize, figure: fn(&Figures) -> f64) -> Vec<f64> {
    rounds
        .iter()
        .filter_map(|round| round.get(path))
        .map(figure)
        .collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
