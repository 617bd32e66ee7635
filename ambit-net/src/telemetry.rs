//! Logs of a program: text or JSON lines on standard output, a filter that can be changed while it runs, panics logged.
//!
//! Called by each program's `main` and by the admin endpoint's `/logging`. A full pipe never holds up a connection:
//! lines go through a bounded queue, and what does not fit is dropped and counted. Knows nothing of what is logged.

mod queue;

use std::error::Error;
use std::panic;
use std::process;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Subscriber, error};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use self::queue::Queue;
use crate::env::EnvReader;

/// Version of this build, the same in logs, metrics and `config_dump`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

static PANICS: AtomicU64 = AtomicU64::new(0);
/// The queue of the process's log, for what outlives [`Log`].
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of words and `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a program logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Form of the lines.
    pub format: LogFormat,
    /// Directives such as `info` or `info,ambit_net::xds=debug`.
    pub filter: String,
}

/// Why logging cannot be as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error(
        "the log filter {filter} cannot be read; write a level, or target=level pairs with commas between"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser found.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was started before.
    #[error("logging was started twice in one process")]
    Twice,
    /// The system gives no thread.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
}

/// A running log; changes its filter, and writes what is left when dropped.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    at_start: String,
}

impl LogSettings {
    /// Reads the settings of the log.
    pub fn read(env: &mut EnvReader) -> Self {
        let format = env
            .setting("AMBIT_LOG_FORMAT", "Form of a log line.")
            .or("LOG_FORMAT")
            .parsed("`text`, `plain` or `json`", "text", |text| {
                text.parse().ok()
            })
            .unwrap_or(LogFormat::Text);
        let filter = env
            .setting(
                "AMBIT_LOG",
                "What is logged: a level, or target=level pairs.",
            )
            .or("RUST_LOG")
            .parsed("such as `info` or `warn,access=info`", "info", |text| {
                parse_filter(text).ok().map(|_filter| text.to_owned())
            });
        Self {
            format,
            filter: filter.unwrap_or_default(),
        }
    }
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

impl Log {
    /// Starts logging for the whole process, and logs panics from now on. Hold the value until the program ends.
    ///
    /// # Errors
    /// [`LogError::Filter`] for a filter that cannot be read, [`LogError::Twice`] on a second call.
    pub fn start(settings: &LogSettings) -> Result<Self, LogError> {
        let queue = Queue::start(std::io::stdout()).map_err(LogError::Thread)?;
        let (filter, handle) = reload::Layer::new(parse_filter(&settings.filter)?);
        let lines = lines(settings.format, queue.clone());
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        subscriber.try_init().map_err(|_set| LogError::Twice)?;
        QUEUE.get_or_init(|| queue);
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            report_panic(panic);
            // The standard one prints to standard error, with a backtrace where one is asked for.
            before(panic);
        }));
        Ok(Self {
            filter: handle,
            at_start: settings.filter.clone(),
        })
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// [`LogError::Filter`] when it cannot be read; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse_filter(filter)?;
        // Fails only when the subscriber is gone, and with it all that a filter could let through.
        drop(self.filter.reload(parsed));
        Ok(())
    }

    /// Puts the filter back that the program was started with.
    pub fn reset_filter(&self) {
        // It was read once, so it can be read again.
        drop(self.set_filter(&self.at_start));
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        let shown = self.filter.with_current(ToString::to_string);
        shown.unwrap_or_else(|_gone| String::new())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        flush();
    }
}

/// Waits until what was logged is written; gives up when whoever reads the log takes nothing for a second. For what a
/// program logs after the [`Log`] is gone.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// An error in one line, with those of its causes that its own text does not repeat: where an error ends in a log.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Panics in this process so far.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Log lines that were dropped so far, because whoever reads the log did not keep up.
pub fn dropped_lines() -> u64 {
    queue::dropped()
}

/// Ends the process at once, after saying why on standard error: for states in which going on would break a promise.
pub fn die(why: &str) -> ! {
    flush();
    queue::write_line(std::io::stderr(), &format!("aborting: {why}"));
    process::abort()
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LogError::Filter {
            filter: filter.to_owned(),
            source,
        })
}

fn lines<S>(format: LogFormat, queue: Queue) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let lines = fmt::layer().with_ansi(false).with_writer(queue);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

fn report_panic(panic: &panic::PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let why = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(ToString::to_string);
    error!(why, place, "panicked");
    // The process may end next.
    flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_added_unless_they_are_said() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the file")]
        struct Bare(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start: {0}")]
        struct Telling(#[source] Bare);

        let file = || Bare(std::io::Error::other("disk on fire"));
        assert_eq!(with_causes(&file()), "cannot read the file: disk on fire");
        let both = "cannot start: cannot read the file: disk on fire";
        assert_eq!(with_causes(&Telling(file())), both);
    }

    fn read(variables: &[(&str, &str)]) -> (LogSettings, Result<(), crate::env::EnvError>) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut env = EnvReader::new(variables.iter().map(owned));
        let settings = LogSettings::read(&mut env);
        (settings, env.finish())
    }

    #[test]
    fn settings_are_read_under_both_names() {
        let (settings, mistakes) =
            read(&[("LOG_FORMAT", "json"), ("RUST_LOG", "warn,access=info")]);
        mistakes.unwrap();
        assert_eq!(settings.format, LogFormat::Json);
        assert_eq!(settings.filter, "warn,access=info");
        let (settings, mistakes) = read(&[]);
        mistakes.unwrap();
        assert_eq!(settings.format, LogFormat::Text);
        assert_eq!(settings.filter, "info");
    }

    #[test]
    fn bad_settings_are_mistakes() {
        let (_, mistakes) = read(&[("AMBIT_LOG_FORMAT", "xml"), ("AMBIT_LOG", "a=b=c")]);
        assert_eq!(mistakes.unwrap_err().mistakes.len(), 2);
    }

    /// The one test that starts the process's log; it holds all that needs it.
    #[test]
    fn the_filter_changes_while_running_and_panics_are_counted() {
        let settings = LogSettings {
            format: LogFormat::Json,
            filter: "warn".to_owned(),
        };
        let log = Log::start(&settings).unwrap();
        assert!(matches!(Log::start(&settings), Err(LogError::Twice)));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        log.set_filter("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert_eq!(log.filter(), "debug");
        let error = log.set_filter("a=b=c").unwrap_err();
        assert!(error.to_string().contains("a=b=c"), "{error}");
        log.reset_filter();
        assert_eq!(log.filter(), "warn");
        let before = panics();
        std::thread::spawn(|| panic!("on purpose"))
            .join()
            .unwrap_err();
        assert_eq!(panics(), before + 1);
    }
}
