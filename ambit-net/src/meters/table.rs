//! The table of all metrics: names, labels, which program has them, and what they mean.
//!
//! The only place where a metric is named; docs/metrics.md is printed from it. Renaming one is a breaking change. Names
//! that begin with `istio_`, `workload_manager_` or `process_` are those of istio/ztunnel. Base units; counters end in
//! `_total`.

/// Value of a label that is not known, in Istio's metrics and in ours.
pub(super) const UNKNOWN: &str = "unknown";

/// Istio's labels of the TCP metrics, in its order.
pub(super) const LABELS: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
}

impl Kind {
    /// The word that Prometheus has for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// The facts about one metric.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name, unit and suffix included.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its labels in order.
    pub labels: &'static [&'static str],
    /// The program that has it.
    pub program: &'static str,
    /// One sentence.
    pub help: &'static str,
}

/// A counter with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct CounterOf<const N: usize> {
    pub(super) about: About,
}

/// A gauge with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct GaugeOf<const N: usize> {
    pub(super) about: About,
}

macro_rules! metrics {
    ($($of:ident $kind:ident $const:ident $name:literal [$($label:literal),*] $program:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $const: $of<{ <[&str]>::len(&[$($label),*]) }> = $of {
                about: About { name: $name, kind: Kind::$kind, labels: &[$($label),*], program: $program, help: $help },
            };
        )*
        /// The metrics that are counted by handle.
        static COUNTED: &[&About] = &[$(&$const.about),*];
    };
}

metrics! {
    GaugeOf Gauge BUILD "istio_build" ["component", "tag"] "all" "One; names the program and its version.";
    GaugeOf Gauge SOCKETS_OPEN "istio_tcp_sockets_open" ["reporter"] "ztunnel" "Connections of apps that are open now.";
    CounterOf Counter CONNECTION_ENDS "ambit_connection_ends_total" ["direction", "reason"] "ztunnel" "Connections by how they ended; the reasons are those of docs/reasons.md.";
    GaugeOf Gauge TUNNELS_OPEN "ambit_tunnels_open" ["direction"] "ztunnel" "HBONE tunnels that are open now.";
    GaugeOf Gauge ACTIVE_PROXIES "workload_manager_active_proxy_count" [] "ztunnel" "Pods that are served.";
    GaugeOf Gauge PENDING_PROXIES "workload_manager_pending_proxy_count" [] "ztunnel" "Pods that are to be served and cannot be yet.";
    CounterOf Counter PROXIES_STARTED "workload_manager_proxies_started_total" [] "ztunnel" "Pods whose serving has begun.";
    CounterOf Counter PROXIES_STOPPED "workload_manager_proxies_stopped_total" [] "ztunnel" "Pods whose serving has ended.";
    GaugeOf Gauge HANDOFF_CONNECTED "ambit_handoff_connected" [] "ztunnel" "One while the node agent is connected.";
    GaugeOf Gauge CERTIFICATES "ambit_certificates" ["state"] "ztunnel" "Identities of this node's pods by the state of their certificate.";
    CounterOf Counter CERTIFICATE_REQUESTS "ambit_certificate_requests_total" ["outcome"] "ztunnel" "Certificates asked of the CA, by the answer.";
    GaugeOf Gauge XDS_CONNECTED "ambit_xds_connected" [] "ztunnel" "One while the controller's stream is open.";
    CounterOf Counter XDS_TERMINATIONS "istio_xds_connection_terminations_total" ["reason"] "ztunnel" "Ends of xDS streams: ConnectionError, Error, Reconnect or Complete.";
    CounterOf Counter XDS_MESSAGES "istio_xds_message_total" ["url"] "ztunnel" "xDS responses by type.";
    CounterOf Counter XDS_MESSAGE_BYTES "istio_xds_message_bytes_total" ["url"] "ztunnel" "Bytes of xDS resources by type.";
    CounterOf Counter XDS_REJECTED "ambit_xds_rejected_resources_total" ["url"] "ztunnel" "xDS resources that could not be used; the log names them.";
    GaugeOf Gauge XDS_STREAMS "ambit_xds_streams" [] "controller" "Streams of proxies that are open now.";
    CounterOf Counter XDS_PUSHES "ambit_xds_pushes_total" ["url"] "controller" "xDS responses sent, by type; `unknown` for types that do not exist.";
    CounterOf Counter XDS_NACKS "ambit_xds_nacks_total" ["url"] "controller" "xDS responses in which a proxy refused something, by type; the log has its words.";
    GaugeOf Gauge XDS_RESOURCES "ambit_xds_resources" ["url"] "controller" "xDS resources that there are, by type.";
    CounterOf Counter CALLS_REFUSED "ambit_calls_refused_total" ["service", "code"] "controller" "gRPC calls refused, or ended before their time, by service (`any` before it is known) and status.";
    CounterOf Counter CERTIFICATES_SIGNED "ambit_certificates_signed_total" [] "controller" "Certificates signed for workloads.";
    GaugeOf Gauge SOURCE_PROBLEMS "ambit_source_problems" [] "controller" "What is wrong in the sources now; `ambit status` names each.";
    GaugeOf Gauge AGENT_PODS "ambit_agent_pods" ["state"] "ambit-cni-agent" "Pods by state: `captured`; `leaving`; `held`, whose rules wait for ztunnel; `waiting`, whose rules are not there. The log says why.";
    GaugeOf Gauge AGENT_ZTUNNELS "ztunnel_connected" [] "ambit-cni-agent" "Connected ztunnels.";
    CounterOf Counter AGENT_RULES_WRITTEN "ambit_agent_rules_written_total" [] "ambit-cni-agent" "Times that rules were written into a pod. Rises when pods join and leave, and otherwise when another program changes them.";
    CounterOf Counter METRIC_SERIES_LIMITED "ambit_metric_series_limited_total" [] "all" "Look-ups that got `unknown` labels because too many series exist.";
}

/// A metric of connections: they all have the same labels.
macro_rules! traffic {
    ($($const:ident $name:literal $help:literal;)*) => {
        $(
            pub(super) static $const: About = About {
                name: $name, kind: Kind::Counter, labels: &LABELS, program: "ztunnel", help: $help,
            };
        )*
        static TRAFFIC: &[&About] = &[$(&$const),*];
    };
}

traffic! {
    TCP_OPENED "istio_tcp_connections_opened_total" "Connections opened.";
    TCP_CLOSED "istio_tcp_connections_closed_total" "Connections closed, whatever the reason.";
    TCP_RECEIVED "istio_tcp_received_bytes_total" "Bytes from client to server, whichever side reports.";
    TCP_SENT "istio_tcp_sent_bytes_total" "Bytes from server to client, whichever side reports.";
    TCP_FAILED "istio_tcp_connections_failed_total" "Connections that failed; `response_flags` says how.";
}

/// What is looked up at each scrape.
macro_rules! process {
    ($($const:ident $kind:ident $name:literal $help:literal;)*) => {
        $(
            pub(super) static $const: About = About {
                name: $name, kind: Kind::$kind, labels: &[], program: "all", help: $help,
            };
        )*
        static PROCESS: &[&About] = &[$(&$const),*];
    };
}

process! {
    OPEN_FDS Gauge "process_open_fds" "Open files and sockets.";
    MAX_FDS Gauge "process_max_fds" "Limit of open files and sockets.";
    RESIDENT_MEMORY Gauge "process_resident_memory_bytes" "Memory that is resident.";
    PANICS Counter "ambit_panics_total" "Panics; each is a bug, and the log has its place.";
    LOG_LINES_DROPPED Counter "ambit_log_lines_dropped_total" "Log lines dropped because the reader of the log did not keep up.";
}

/// Every metric, in the order of the documentation.
pub(super) fn all() -> impl Iterator<Item = &'static About> {
    [TRAFFIC, COUNTED, PROCESS].into_iter().flatten().copied()
}
