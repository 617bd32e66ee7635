//! Asks a program what it says about itself: HTTP GET, Prometheus text, log lines of `key=value` or JSON.
//!
//! Called by `node.rs`, tests, benchmarks and the demonstration. Knows the formats, not the names of metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::failure::{Context as _, Failure, Outcome};
use crate::inside::{PATIENCE, connect};

/// GETs `path` from a TCP port seen from a namespace; returns status and body.
///
/// # Errors
/// When nobody answers, or not in HTTP/1.
pub fn get(netns: &Path, from: SocketAddr, path: &str) -> Outcome<(u16, String)> {
    exchange(connect(netns, from)?, path)
}

/// GETs `path` from a Unix socket; returns status and body.
///
/// # Errors
/// When nobody answers, or not in HTTP/1.
pub fn get_unix(socket: &Path, path: &str) -> Outcome<(u16, String)> {
    let stream = UnixStream::connect(socket).context(socket.display())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, path)
}

fn exchange(mut stream: impl Read + Write, path: &str) -> Outcome<(u16, String)> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let answer = crate::command::text(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context(format_args!("no HTTP answer: {answer}"))?;
    let status = head
        .split(' ')
        .nth(1)
        .context("no status")?
        .parse()
        .context("status")?;
    let body = match head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        true => dechunked(body)?,
        false => body.to_owned(),
    };
    Ok((status, body))
}

/// Joins the chunks of a chunked body (RFC 9112 §7.1).
fn dechunked(mut rest: &str) -> Outcome<String> {
    let mut whole = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").context("no chunk length")?;
        let length = usize::from_str_radix(length.trim(), 16).context("chunk length")?;
        if length == 0 {
            return Ok(whole);
        }
        whole.push_str(after.get(..length).context("a chunk is cut")?);
        rest = after.get(length + 2..).context("a chunk is cut")?;
    }
}

/// The series of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Vec<Series>);

/// One line of Prometheus text.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Reads Prometheus text (exposition format 0.0.4).
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &str) -> Outcome<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| series(line).context(format_args!("not a metric: {line}")))
            .collect::<Outcome<_>>()
            .map(Self)
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    /// When it cannot be reached or read.
    pub fn scrape(netns: &Path, from: SocketAddr) -> Outcome<Self> {
        let (status, body) = get(netns, from, "/metrics")?;
        if status != 200 {
            return Err(Failure::new(format!("/metrics of {from}: status {status}")));
        }
        Self::parse(&body)
    }

    /// The series of this name with at least these labels.
    pub fn select(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Series> {
        let fits = |series: &&Series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(label, value)| series.labels.get(*label).is_some_and(|has| has == value))
        };
        self.0.iter().filter(fits).collect()
    }

    /// Sum of the series of this name with at least these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels)
            .iter()
            .map(|series| series.value)
            .sum()
    }
}

fn series(line: &str) -> Option<Series> {
    let (name, labels, value) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = rest.rsplit_once('}')?;
            (name, pairs(labels), value)
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            (name, BTreeMap::new(), value)
        }
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// Reads a log line: JSON (`{…}`; nested `fields` are lifted) or `key=value` words, values possibly quoted.
pub fn log_fields(line: &str) -> BTreeMap<String, String> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(line) else {
        return pairs(line);
    };
    let mut fields = BTreeMap::new();
    for (key, value) in object {
        match value {
            serde_json::Value::Object(inner) => {
                fields.extend(inner.into_iter().map(|(key, value)| (key, plain(&value))))
            }
            value => {
                fields.insert(key, plain(&value));
            }
        }
    }
    fields
}

fn plain(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Reads `key=value` and `key="value"` pairs, between commas or blanks; other words are skipped.
fn pairs(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('=') {
        let key = before.rsplit([' ', ',', '\t']).next().unwrap_or_default();
        let (value, next) = value(after);
        found.insert(key.to_owned(), value);
        rest = next;
    }
    found
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_label_and_summed() {
        let text =
            "# HELP x y\nx_total{a=\"1\",b=\"two, {three}\"} 4\nx_total{a=\"2\",b=\"c\"} 3\nup 1\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("x_total", &[]), 7.0);
        assert_eq!(metrics.sum("x_total", &[("b", "two, {three}")]), 4.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert!(Metrics::parse("nonsense").is_err());
    }

    #[test]
    fn log_lines_of_both_formats_give_the_same_fields() {
        let text =
            r#"2026-01-01 INFO access: closed src.addr=10.0.0.1:80 reason="ok" policy="a \"b\" c""#;
        let json = r#"{"level":"INFO","fields":{"src.addr":"10.0.0.1:80","reason":"ok","policy":"a \"b\" c","n":3}}"#;
        for (line, number) in [(text, None), (json, Some("3"))] {
            let fields = log_fields(line);
            assert_eq!(fields["src.addr"], "10.0.0.1:80");
            assert_eq!(fields["reason"], "ok");
            assert_eq!(fields["policy"], "a \"b\" c");
            assert_eq!(fields.get("n").map(String::as_str), number);
        }
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            dechunked("3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").unwrap(),
            "abcd"
        );
    }
}
