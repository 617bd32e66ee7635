//! Text of a file → its YAML documents, each with the line it begins on.
//!
//! Called by the scanner. The text is cut at document markers first (YAML 1.2.2 §9.1), so that a document that cannot
//! be parsed names its own line and leaves its neighbours readable.

use serde_json::Value;

/// A document or why it is none.
#[derive(Debug)]
pub(super) struct Piece {
    /// Line on which its content begins, counted from 1.
    pub(super) line: usize,
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
    /// The fields of the document above the fault.
    pub(super) head: Option<Value>,
}

/// How many of the top-level fields above a fault are given up to find a readable head.
const MAX_GIVEN_UP: usize = 16;

/// Cuts a file into documents and parses each; empty documents are left out.
pub(super) fn documents(text: &str) -> Vec<Piece> {
    cut(text)
        .into_iter()
        .map(|(first, text)| Piece {
            line: first + blank_lines(text),
            parsed: read(text, first),
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

/// Parses a text whose first line is line `first` of its file.
fn read(text: &str, first: usize) -> Result<Value, Fault> {
    parse(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line());
        let line = usize::try_from(line).unwrap_or(1);
        Fault {
            line: first + line.saturating_sub(1),
            cause: one_line(&error.to_string()),
            head: head(text, line),
        }
    })
}

fn parse(text: &str) -> Result<Value, serde_saphyr::Error> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    // As in YAML 1.2, so that a pod may be called `n`: only `true` and `false` are booleans.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
}

/// The mapping above line `fault`, without the field that has the fault in it.
fn head(text: &str, fault: usize) -> Option<Value> {
    let mut at = 0;
    let mut fields = Vec::new();
    for line in text.split_inclusive('\n').take(fault) {
        if line.starts_with(|c: char| !c.is_whitespace() && c != '#') {
            fields.push(at);
        }
        at += line.len();
    }
    let above = fields.iter().rev().take(MAX_GIVEN_UP);
    above
        .filter_map(|end| parse(text.get(..*end)?).ok())
        .find(Value::is_object)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
