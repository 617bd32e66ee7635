//! The routes that every program has: readiness, metrics, the log's filter, and the request to stop.
//!
//! Called where a program puts its endpoints together. Paths and answers are those of istio/ztunnel.

use std::sync::Arc;

use http::StatusCode;

use super::{Answer, Query, Readiness, Routes};
use crate::meters::Meters;
use crate::telemetry::Log;

/// `content-type` of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers the readiness probe: 200, or 500 with the names of what is awaited.
pub fn readiness(readiness: Readiness) -> Routes {
    Routes::new().get("/healthz/ready", move |_query| {
        match readiness.pending().as_slice() {
            [] => Answer::text(StatusCode::OK, "ready\n"),
            pending => {
                let text = format!("not ready, pending: {}\n", pending.join(", "));
                Answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    })
}

/// Answers scrapes.
pub fn metrics(meters: &Arc<Meters>) -> Routes {
    let page = |meters: Arc<Meters>| {
        move |_query: &Query<'_>| Answer {
            status: StatusCode::OK,
            content_type: PROMETHEUS,
            body: meters.render().into(),
        }
    };
    Routes::new()
        .get("/metrics", page(Arc::clone(meters)))
        .get("/stats/prometheus", page(Arc::clone(meters)))
}

/// Shows and sets the log's filter: `?level=debug`, `?level=access:warn,ambit_net::xds:debug`, `?reset`.
pub fn logging(log: Arc<Log>) -> Routes {
    let shown = Arc::clone(&log);
    Routes::new()
        .get("/logging", move |_query| current(&shown))
        .post("/logging", move |query| change(&log, query))
}

/// Lets the program be stopped in the way a signal would; `stop` must not wait.
pub fn quit(stop: impl Fn() + Send + Sync + 'static) -> Routes {
    Routes::new().post("/quitquitquit", move |_query| {
        stop();
        Answer::text(StatusCode::OK, "shutdown now\n")
    })
}

fn current(log: &Log) -> Answer {
    let text = format!("current log level is {}\n", log.filter());
    Answer::text(StatusCode::OK, text)
}

fn change(log: &Log, query: &Query<'_>) -> Answer {
    if query.parameter("reset").is_some() {
        log.reset_filter();
    }
    if let Some(level) = query.parameter("level")
        && let Err(error) = log.set_filter(&directives(&level))
    {
        return Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n"));
    }
    current(log)
}

/// Turns Istio's `target:level` into `target=level`.
fn directives(level: &str) -> String {
    let parts = level.split(',').map(|part| match part.rsplit_once(':') {
        Some((target, level)) if !target.ends_with(':') && !part.contains('=') => {
            format!("{target}={level}")
        }
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_taken_in_both_notations() {
        for (given, expected) in [
            ("debug", "debug"),
            ("access:warn", "access=warn"),
            ("ambit_net::xds:debug,info", "ambit_net::xds=debug,info"),
            ("ambit_net::xds=debug", "ambit_net::xds=debug"),
            ("ambit_net::xds", "ambit_net::xds"),
        ] {
            assert_eq!(directives(given), expected);
        }
    }
}
