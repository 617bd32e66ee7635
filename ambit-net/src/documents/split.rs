//! Text of a file → its YAML documents, each with the line it begins on.
//!
//! Called by the scanner. The text is cut at document markers first (YAML 1.2.2 §9.1), so that a document that cannot
//! be parsed names its own line and leaves its neighbours readable.

use serde_json::Value;

/// A document or why it is none.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// Line on which its content begins, counted from 1.
    pub(super) line: usize,
    /// The text between two markers.
    pub(super) text: &'a str,
    /// What the text says.
    pub(super) parsed: Result<Value, Fault>,
}

/// Where and why a text is not YAML.
#[derive(Debug)]
pub(super) struct Fault {
    /// Line of the file, counted from 1.
    pub(super) line: usize,
    /// The parser's word.
    pub(super) cause: String,
}

/// Cuts a file into documents and parses each; empty documents are left out.
pub(super) fn documents(text: &str) -> Vec<Piece<'_>> {
    cut(text)
        .into_iter()
        .map(|(first, text)| (first + blank_lines(text), first, text))
        .map(|(line, first, text)| Piece {
            line,
            text,
            parsed: parse(text, first),
        })
        .filter(|piece| !matches!(piece.parsed, Ok(Value::Null)))
        .collect()
}

/// The texts between markers, each with the line on which it begins. A marker is at the start of a line, where no
/// content of a mapping can be.
fn cut(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut from, mut first, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) {
            parts.push((first, text.get(from..at).unwrap_or_default()));
            // What follows a marker on its line belongs to the document that begins there.
            (from, first) = (at + 3, index + 1);
        }
        at += line.len();
    }
    parts.push((first, text.get(from..).unwrap_or_default()));
    parts
}

fn is_marker(line: &str) -> bool {
    ["---", "..."]
        .iter()
        .filter_map(|marker| line.strip_prefix(marker))
        .any(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn blank_lines(text: &str) -> usize {
    text.lines()
        .take_while(|line| {
            let content = line.trim_start();
            content.is_empty() || content.starts_with('#')
        })
        .count()
}

fn parse(text: &str, first: usize) -> Result<Value, Fault> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Fault {
        line: error
            .location()
            .and_then(|at| usize::try_from(at.line()).ok())
            .map_or(first, |line| first + line.saturating_sub(1)),
        cause: one_line(&error.to_string()),
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
