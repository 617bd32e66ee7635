//! Settings from environment variables: typed, with every mistake collected, and printed as a table for docs/config.md.
//!
//! Called once at start by each program's `config.rs`; the only place that reads the process's environment. Knows no
//! setting itself: the caller names each with its default and its meaning in one line.

mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use self::value::{parse_duration, parse_flag, print_duration};

/// Names that begin so are ours, so one that nobody knows is a mistake.
const OURS: &str = "AMBIT_";
/// Parts of names that Kubernetes makes of Services and injects into pods (`AMBIT_CONTROLLER_SERVICE_HOST`,
/// `AMBIT_CONTROLLER_PORT_15012_TCP`). A misspelt setting that contains one is not noticed.
const INJECTED: [&str; 2] = ["_SERVICE_", "_PORT"];

/// Reads settings and remembers what was asked for and what was wrong.
#[derive(Debug, Default)]
pub struct EnvReader {
    values: BTreeMap<String, String>,
    known: Vec<Variable>,
    mistakes: Vec<Mistake>,
    notices: Vec<String>,
}

/// All that is wrong with an environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n"))]
pub struct EnvError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is wrong; prints as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A setting without a default is not there.
    Missing {
        /// The setting.
        name: &'static str,
        /// What it is for.
        meaning: &'static str,
    },
    /// A value cannot be read.
    Value {
        /// The variable as it was written.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A name that is ours and that this program does not know.
    Unknown {
        /// The variable.
        name: String,
        /// The setting that is spelled most like it.
        similar: Option<&'static str>,
    },
}

#[derive(Debug)]
struct Variable {
    name: &'static str,
    aliases: Vec<&'static str>,
    default: String,
    kind: String,
    meaning: &'static str,
}

/// One setting about to be read; ends with a method that says its type and default.
#[derive(Debug)]
#[must_use = "a setting is read by the method that names its type"]
pub struct Setting<'a> {
    env: &'a mut EnvReader,
    name: &'static str,
    aliases: Vec<&'static str>,
    meaning: &'static str,
}

impl EnvReader {
    /// Reads from these variables. An empty value counts as not set.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let set = variables.into_iter().filter(|(_, value)| !value.is_empty());
        Self {
            values: set.collect(),
            ..Self::default()
        }
    }

    /// Reads from the environment of this process.
    pub fn of_process() -> Self {
        let text = |os: OsString| os.to_string_lossy().into_owned();
        Self::new(std::env::vars_os().map(|(name, value)| (text(name), text(value))))
    }

    /// Begins one setting: our name for it and one sentence on what it does.
    pub fn setting(&mut self, name: &'static str, meaning: &'static str) -> Setting<'_> {
        Setting {
            env: self,
            name,
            aliases: Vec::new(),
            meaning,
        }
    }

    /// Ends reading: says whether all was well. Call it when every setting of the program has been asked for.
    ///
    /// # Errors
    /// All mistakes of the environment, those of spelling included.
    pub fn finish(&self) -> Result<(), EnvError> {
        let unknown = self.values.keys().filter(|name| self.is_unknown(name));
        let unknown = unknown.map(|name| Mistake::Unknown {
            name: name.clone(),
            similar: self.similar(name),
        });
        let mistakes: Vec<_> = self.mistakes.iter().cloned().chain(unknown).collect();
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(EnvError { mistakes })
        }
    }

    /// Sentences to log once the log is up: settings that were given and are not in force.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The settings that were asked for, as a Markdown table in the order of asking.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| variable | also read | default | value | meaning |\n|---|---|---|---|---|\n",
        );
        for variable in &self.known {
            let aliases: Vec<String> = variable.aliases.iter().map(code).collect();
            let cells = [
                code(&variable.name),
                aliases.join(", "),
                variable.default.clone(),
                variable.kind.clone(),
                variable.meaning.to_owned(),
            ];
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            table.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        table
    }

    fn is_unknown(&self, name: &str) -> bool {
        let ours = name.starts_with(OURS);
        let injected = INJECTED.iter().any(|part| name.contains(part));
        ours && !injected && !self.names().any(|known| known == name)
    }

    fn similar(&self, name: &str) -> Option<&'static str> {
        let ranked = self
            .names()
            .map(|known| (value::distance(name, known), known));
        let (distance, known) = ranked.min()?;
        (distance <= name.len() / 4).then_some(known)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        let all = self.known.iter();
        all.flat_map(|known| std::iter::once(known.name).chain(known.aliases.iter().copied()))
    }
}

impl Setting<'_> {
    /// Also reads this name, Istio's for example; of names that are set, the one given first counts.
    pub fn or(mut self, alias: &'static str) -> Self {
        self.aliases.push(alias);
        self
    }

    /// A text.
    pub fn text(self, default: &str) -> String {
        self.read("text", code(&default), any)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A text that may be absent.
    pub fn optional_text(self) -> Option<String> {
        self.read("text", String::new(), any)
    }

    /// A text that must be there; empty after a mistake.
    pub fn required_text(self) -> String {
        self.required("text", any).unwrap_or_default()
    }

    /// A path.
    pub fn path(self, default: &str) -> PathBuf {
        self.read("path", code(&default), any)
            .map_or_else(|| default.into(), PathBuf::from)
    }

    /// A path that may be absent.
    pub fn optional_path(self) -> Option<PathBuf> {
        self.read("path", String::new(), any).map(PathBuf::from)
    }

    /// A path that must be there; empty after a mistake.
    pub fn required_path(self) -> PathBuf {
        self.required("path", any)
            .map(PathBuf::from)
            .unwrap_or_default()
    }

    /// A path that must be there under a `condition`, which `when` names for the reader of the table; empty without.
    pub fn path_required_if(self, condition: bool, when: &str) -> PathBuf {
        let path = if condition {
            self.required_as("path", when, any)
        } else {
            self.read("path", when.to_owned(), any)
        };
        path.map(PathBuf::from).unwrap_or_default()
    }

    /// Yes or no.
    pub fn flag(self, default: bool) -> bool {
        self.read("`true` or `false`", code(&default), parse_flag)
            .unwrap_or(default)
    }

    /// A whole number within a range; `unit` is what it counts.
    pub fn number(self, unit: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let kind = format!("{unit}, {} to {}", range.start(), range.end());
        let parse = |text: &str| text.parse().ok().filter(|number| range.contains(number));
        self.read(&kind, code(&default), parse).unwrap_or(default)
    }

    /// A length of time within a range.
    pub fn duration(self, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let [from, to] = [range.start(), range.end()].map(|end| print_duration(*end));
        let kind = format!("time such as `250ms`, `5s` or `1h30m`, {from} to {to}");
        let parse = |text: &str| parse_duration(text).filter(|time| range.contains(time));
        let printed = code(&print_duration(default));
        self.read(&kind, printed, parse).unwrap_or(default)
    }

    /// An IP address and port.
    pub fn socket_addr(self, default: SocketAddr) -> SocketAddr {
        let parse = |text: &str| text.parse().ok();
        self.read("address:port", code(&default), parse)
            .unwrap_or(default)
    }

    /// A value with a notation of its own; `kind` describes it, `default` is as an operator would write it. None only
    /// when the default itself cannot be read.
    pub fn parsed<T>(
        self,
        kind: &str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let fallback = parse(default);
        self.read(kind, code(&default), parse).or(fallback)
    }

    /// Several values separated by commas; blanks around them are dropped.
    pub fn list(self) -> Vec<String> {
        let text = self.read("texts separated by commas", String::new(), any);
        let parts = text.iter().flat_map(|text| text.split(',')).map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// A setting that is known and does nothing yet; leaves a notice when it is given.
    pub fn not_in_force(self) {
        let given = self.given().map(|(name, value)| format!("{name}={value}"));
        if let Some(given) = given {
            let notice = format!("{given} is not in force: {}", self.meaning);
            self.env.notices.push(notice);
        }
        self.read("not in force", String::new(), any);
    }

    fn required<T>(self, kind: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.required_as(kind, "required", parse)
    }

    fn required_as<T>(
        self,
        kind: &str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        if self.given().is_none() {
            self.env.mistakes.push(Mistake::Missing {
                name: self.name,
                meaning: self.meaning,
            });
        }
        self.read(kind, default.to_owned(), parse)
    }

    fn given(&self) -> Option<(&'static str, &String)> {
        let names = std::iter::once(self.name).chain(self.aliases.iter().copied());
        names
            .into_iter()
            .find_map(|name| Some((name, self.env.values.get(name)?)))
    }

    fn read<T>(self, kind: &str, default: String, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let found = self.given().map(|(name, value)| (name, value.clone()));
        if self.env.known.iter().all(|known| known.name != self.name) {
            self.env.known.push(Variable {
                name: self.name,
                aliases: self.aliases,
                default,
                kind: kind.to_owned(),
                meaning: self.meaning,
            });
        }
        let (name, value) = found?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.env.mistakes.push(Mistake::Value {
                name: name.to_owned(),
                value,
                expected: kind.to_owned(),
            });
        }
        parsed
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, meaning } => write!(f, "{name} is not set: {meaning}"),
            Self::Value {
                name,
                value,
                expected,
            } => write!(f, "{name}={value} cannot be read; expected {expected}"),
            Self::Unknown {
                name,
                similar: Some(similar),
            } => write!(
                f,
                "{name} is not a setting of this program; is {similar} meant?"
            ),
            Self::Unknown {
                name,
                similar: None,
            } => write!(
                f,
                "{name} is not a setting of this program; docs/config.md lists all"
            ),
        }
    }
}

fn any(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn code(text: &impl fmt::Display) -> String {
    format!("`{text}`")
}

#[cfg(test)]
mod tests;
