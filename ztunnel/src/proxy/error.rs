//! What can go wrong with a connection, and the one [`Reason`] that each case has.
//!
//! Made by the conductors and their leaves, ended in `record`. Each text says what failed; the next step is in
//! docs/reasons.md under the reason's word.

use std::io;

use ambit_core::identity::SpiffeId;
use ambit_core::names::NamespacedName;
use ambit_core::reason::Reason;
use ambit_net::certs::CertError;
use ambit_net::hbone::HboneError;
use ambit_net::relay::RelayError;
use ambit_net::telemetry::with_causes;
use ambit_net::tls::TlsError;
use thiserror::Error;

use super::admission::Denied;
use super::sockets::ConnectError;

/// How a connection failed, as the log and the metrics say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The stable word.
    pub(crate) reason: Reason,
    /// What happened, for people.
    pub(crate) text: String,
    /// The policies that refuse.
    pub(crate) policies: Vec<NamespacedName>,
}

/// Why the mesh is not known well enough to decide about a pod's connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum PodUnknown {
    /// The controller's first answer has not come.
    #[error("the mesh is not known yet")]
    NotSynced,
    /// The controller does not name the pod.
    #[error("the controller does not know the pod")]
    Absent,
    /// The controller names the pod in a way that cannot be read.
    #[error("what the controller says of the pod cannot be read")]
    Unreadable,
    /// The controller and the node agent disagree about who the pod is.
    #[error("the controller says that the pod is {theirs}, the node agent that it is {ours}")]
    OtherIdentity {
        /// The node agent's word.
        ours: SpiffeId,
        /// The controller's.
        theirs: SpiffeId,
    },
}

/// Why an outbound connection was not carried to its end.
#[derive(Debug, Error)]
pub(crate) enum OutboundError {
    /// Nobody redirected it here.
    #[error("the connection was not redirected: {0}")]
    OriginalDestination(#[source] io::Error),
    /// No decision is possible.
    #[error(transparent)]
    Unknown(#[from] PodUnknown),
    /// The decision is to refuse it.
    #[error("{}", .0.meaning())]
    Refused(Reason),
    /// The destination cannot be connected to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No tunnel, or no stream in it.
    #[error(transparent)]
    Tunnel(#[from] HboneError),
    /// It broke while it was carried.
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// Why an inbound connection was not let in, or not carried to its end.
#[derive(Debug, Error)]
pub(crate) enum InboundError {
    /// Nobody redirected it here.
    #[error("the connection was not redirected: {0}")]
    OriginalDestination(#[source] io::Error),
    /// No decision is possible.
    #[error(transparent)]
    Unknown(#[from] PodUnknown),
    /// Too many handshakes are under way.
    #[error("too many handshakes are under way")]
    Handshakes,
    /// No certificate to prove the pod's identity with.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The client did not prove who it is.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The tunnel or the stream broke before it was carried.
    #[error(transparent)]
    Tunnel(#[from] HboneError),
    /// The request is not one that is served here.
    #[error("{}", .0.meaning())]
    Refused(Reason),
    /// Policy refuses it, or no longer permits it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The client went away before the app had answered.
    #[error("the client gave up")]
    GaveUp,
    /// The app cannot be connected to.
    #[error(transparent)]
    App(ConnectError),
    /// It broke while it was carried.
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl Failure {
    /// The task of a connection was cut, for this reason.
    pub(crate) fn cut(reason: Reason) -> Self {
        Self {
            reason,
            text: "the connection was cut".to_owned(),
            policies: Vec::new(),
        }
    }
}

impl From<OutboundError> for Failure {
    fn from(error: OutboundError) -> Self {
        Self {
            reason: error.reason(),
            text: with_causes(&error),
            policies: Vec::new(),
        }
    }
}

impl From<InboundError> for Failure {
    fn from(error: InboundError) -> Self {
        let (reason, text) = (error.reason(), with_causes(&error));
        let policies = match error {
            InboundError::Denied(denied) => denied.policies,
            _ => Vec::new(),
        };
        Self {
            reason,
            text,
            policies,
        }
    }
}

impl PodUnknown {
    /// The stable word for this failure.
    const fn reason(&self) -> Reason {
        match self {
            Self::NotSynced => Reason::PolicyNotSynced,
            Self::Absent | Self::OtherIdentity { .. } => Reason::WorkloadUnknown,
            Self::Unreadable => Reason::ResourceUnreadable,
        }
    }
}

impl OutboundError {
    /// The stable word for this failure.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::OriginalDestination(_) => Reason::OriginalDestination,
            Self::Unknown(PodUnknown::NotSynced) => Reason::WorkloadUnknown,
            Self::Unknown(unknown) => unknown.reason(),
            Self::Refused(reason) => *reason,
            Self::Connect(error) => error.reason(),
            Self::Tunnel(error) => error.reason(),
            Self::Relay(error) => error.reason(),
        }
    }

    /// True when the destination certainly took no byte and another endpoint may do better.
    pub(crate) fn may_go_elsewhere(&self) -> bool {
        match self {
            // A refusal is meant for us wherever it comes from; that the app is down there is not.
            Self::Tunnel(HboneError::Answered { status, .. }) => status.is_server_error(),
            Self::Connect(_) | Self::Tunnel(_) => self.reason().retry_can_help(),
            _ => false,
        }
    }
}

impl InboundError {
    /// The stable word for this failure.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::OriginalDestination(_) => Reason::OriginalDestination,
            Self::Unknown(unknown) => unknown.reason(),
            Self::Handshakes => Reason::LimitReached,
            Self::Certificate(error) => error.reason(),
            Self::Tls(error) => error.reason(),
            Self::Tunnel(error) => error.reason(),
            Self::Refused(reason) => *reason,
            Self::Denied(denied) => denied.reason,
            Self::GaveUp => Reason::PeerReset,
            Self::App(error) => error.reason_at_app(),
            Self::Relay(error) => error.reason(),
        }
    }
}

impl ConnectError {
    /// The stable word when the other side is a destination on the network.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Netns(_) | Self::Socket(_) => Reason::SocketFailed,
            Self::Refused { .. } => Reason::ConnectRefused,
            Self::Timeout { .. } => Reason::ConnectTimeout,
        }
    }

    /// The stable word when the other side is the pod's own app.
    pub(crate) const fn reason_at_app(&self) -> Reason {
        match self {
            Self::Netns(_) | Self::Socket(_) => Reason::SocketFailed,
            Self::Refused { .. } | Self::Timeout { .. } => Reason::AppUnreachable,
        }
    }
}
