//! Why a connection or a request was refused or failed: one stable word for log, metric, status and documentation.
//!
//! Every error of the data path maps to one [`Reason`]; `docs/reasons.md` is printed from [`Reason::ALL`]. Renaming a
//! word is a breaking change. The table below is the only place that knows what a reason means.

use serde::Serialize;

/// Who has to act before the same connection can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// Nobody: the connection did what was asked.
    Nobody,
    /// The other side of the connection.
    Peer,
    /// A policy refuses it on purpose.
    Policy,
    /// The network between the parties.
    Network,
    /// The application or its absence.
    App,
    /// Manifests or settings of the mesh.
    Configuration,
    /// Ambit itself.
    Mesh,
}

/// The facts about one reason.
#[derive(Clone, Copy, Debug)]
struct Facts {
    code: &'static str,
    blame: Blame,
    retry: bool,
    flags: &'static str,
    meaning: &'static str,
    next_step: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $code:literal, $blame:ident, $retry:literal, $flags:literal, $meaning:literal, $next:literal;)*) => {
        /// Outcome of a connection, or why it was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            const fn facts(self) -> Facts {
                match self {
                    $(Reason::$name => Facts {
                        code: $code, blame: Blame::$blame, retry: $retry, flags: $flags, meaning: $meaning, next_step: $next,
                    },)*
                }
            }
        }
    };
}

reasons! {
    Ok => "ok", Nobody, false, "-", "The connection was carried to its end.", "Nothing to do.";
    PolicyDenied => "policy_denied", Policy, false, "DENY", "A DENY policy matches the connection.", "Read the policy named in the log line; change its rules or the client's identity.";
    PolicyNotAllowed => "policy_not_allowed", Policy, false, "DENY", "ALLOW policies select the workload and none of them matches.", "Add a rule that names this client, port or namespace to one of the ALLOW policies in the log line.";
    PolicyUnreadable => "policy_unreadable", Policy, false, "DENY", "A policy that selects the workload has content that this proxy does not understand, so it refuses what it selects.", "Correct the policy or upgrade the proxies; the controller's log names the field.";
    PolicyChanged => "policy_changed", Policy, false, "DENY", "The connection was open and a changed policy no longer permits it.", "Read the policy named in the log line.";
    PlaintextRefused => "plaintext_refused", Policy, false, "DENY", "The workload requires mutual TLS (PeerAuthentication STRICT) and the client came without it.", "Join the client's namespace to the mesh, or allow plaintext on that port.";
    PolicyNotSynced => "policy_not_synced", Mesh, true, "DENY", "The proxy has not yet received the policies that the workload refers to, so nothing is let through.", "Wait for the controller; look at readiness and `ambit status`.";
    PeerUntrusted => "peer_untrusted", Peer, false, "TLS_FAILURE", "The peer's certificate is not signed by this mesh's root, is expired, or is not valid yet.", "Compare the clocks and the trust roots of both nodes.";
    PeerForeignTrustDomain => "peer_foreign_trust_domain", Peer, false, "TLS_FAILURE", "The peer's identity belongs to another trust domain.", "Give both sides the same trust domain; federation is not served.";
    PeerUnexpected => "peer_unexpected", Peer, false, "IDENTITY_ERROR", "The server proved another identity than the one that the destination should have.", "Wait for the new address to reach this node; if it stays, something else answers at that address.";
    TlsFailed => "tls_failed", Peer, true, "TLS_FAILURE", "The TLS handshake failed or did not end in time.", "Look at the peer's log for the same time; both sides need TLS 1.3 with ALPN h2.";
    HbonePeer => "hbone_protocol", Peer, true, "H2_HANDSHAKE_FAILURE", "The peer broke the HTTP/2 or HBONE protocol, or the tunnel was lost.", "Look at the peer's log for the same time.";
    NotConnect => "not_connect", Peer, false, "-", "A request in the tunnel was not CONNECT.", "Only HBONE clients may use port 15008.";
    BadAuthority => "bad_authority", Peer, false, "-", "The CONNECT request names no usable host and port.", "Upgrade the client proxy; the authority is in the log line.";
    NotOurTarget => "not_our_target", Peer, false, "-", "The CONNECT request names an address that this pod does not have and does not serve.", "The client's view of the mesh is old, or the request is forged.";
    TargetUnknown => "target_unknown", Configuration, true, "-", "The pod or the service port that the request names is not known to this proxy.", "Check that the Service has the port and that the controller has sent the pod (`ambit status`).";
    CapturePort => "capture_port", App, false, "-", "The destination is one of the mesh's own capture ports (15001, 15006, 15008).", "Let the app use another port.";
    AppUnreachable => "app_unreachable", App, true, "CONNECT", "The app did not accept the connection.", "Check that the app listens on that port and on that address family.";
    ConnectRefused => "connect_refused", Network, true, "CONNECT", "The destination refused the TCP connection.", "Check that the destination runs and listens.";
    ConnectTimeout => "connect_timeout", Network, true, "CONNECT", "The destination did not answer the TCP connection in time.", "Check routes and firewalls between the nodes.";
    TunnelTimeout => "tunnel_timeout", Network, true, "NETWORK_POLICY", "The destination's port 15008 did not answer in time.", "A NetworkPolicy or firewall probably blocks TCP port 15008 between the pods.";
    TunnelRefused => "tunnel_refused", Peer, true, "CONNECT", "The destination's proxy answered the CONNECT request with another status than 200.", "The destination's log line for the same time says why.";
    NoHealthyEndpoint => "no_healthy_endpoint", Configuration, true, "CONNECT", "The service has no endpoint that can take the connection.", "Check the pods behind the Service and their readiness.";
    WaypointUnavailable => "waypoint_unavailable", Configuration, true, "CONNECT", "The destination is bound to a waypoint that cannot be reached, and the mesh does not go around it.", "Check the waypoint named in the log line.";
    OtherNetwork => "other_network", Configuration, false, "CONNECT", "The endpoint is on another network and no gateway leads there.", "Only one network is served today.";
    NotServed => "not_served", Configuration, false, "-", "The destination needs something that this version does not do (PROXY protocol towards a waypoint).", "Bind the waypoint without PROXY protocol.";
    WorkloadUnknown => "workload_unknown", Mesh, true, "-", "The proxy does not know the pod that opened or receives the connection.", "Check that the controller knows the pod, with these addresses, on this node.";
    ResourceUnreadable => "resource_unreadable", Mesh, false, "CONNECT", "The controller describes the destination, or the pod itself, in a way that this proxy cannot read, so nothing is sent there.", "The proxy's and the controller's log name the resource and the field; bring both programs to the same version.";
    NoCertificate => "no_certificate", Mesh, true, "IDENTITY_ERROR", "The proxy holds no valid certificate for the pod's identity.", "The controller refuses to sign or is not reachable; its log names the reason.";
    LimitReached => "limit_reached", Mesh, true, "-", "A bound of the proxy is reached (connections, handshakes or streams).", "Find the client that opens so many, or raise the limit in docs/config.md.";
    OriginalDestination => "original_destination", Mesh, false, "-", "The kernel could not say where the connection was going before it was redirected.", "Connections to port 15001 or 15006 that were not redirected are refused.";
    SocketFailed => "socket_failed", Mesh, true, "CONNECT", "The kernel refused an operation on a socket.", "The log line has the system's error; look for limits of files, ports or privileges.";
    PeerReset => "peer_reset", Peer, false, "-", "One side reset the connection while it was carried.", "Look at the app that reset; the mesh passed the reset on.";
    Drained => "drained", Mesh, true, "-", "The proxy stopped and the connection did not end before the deadline.", "Raise the termination deadline, or let clients reconnect.";
    PodRemoved => "pod_removed", Mesh, false, "-", "The pod left the mesh or ended while the connection was open.", "Nothing to do.";
}

impl Reason {
    /// The stable word used in logs, metrics, statuses and documentation.
    pub const fn code(self) -> &'static str {
        self.facts().code
    }

    /// Who has to act.
    pub const fn blame(self) -> Blame {
        self.facts().blame
    }

    /// True when the same attempt may succeed later without any change.
    pub const fn retry_can_help(self) -> bool {
        self.facts().retry
    }

    /// Istio's `response_flags` label for this reason.
    pub const fn response_flags(self) -> &'static str {
        self.facts().flags
    }

    /// One sentence that says what happened.
    pub const fn meaning(self) -> &'static str {
        self.facts().meaning
    }

    /// One sentence that says what to do next.
    pub const fn next_step(self) -> &'static str {
        self.facts().next_step
    }

    /// HTTP status that a refused CONNECT is answered with (ambient HBONE: 400, 401 or 503).
    pub const fn connect_status(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NotConnect | Self::BadAuthority | Self::NotOurTarget => 400,
            _ => match self.blame() {
                Blame::Policy => 401,
                _ if matches!(self, Self::PolicyNotSynced) => 401,
                _ => 503,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_unique_and_well_formed() {
        let words: HashSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{word}"
            );
        }
    }

    #[test]
    fn statuses_follow_hbone() {
        let cases = [
            (Reason::Ok, 200),
            (Reason::NotConnect, 400),
            (Reason::BadAuthority, 400),
            (Reason::NotOurTarget, 400),
            (Reason::PolicyDenied, 401),
            (Reason::PolicyUnreadable, 401),
            (Reason::PolicyNotSynced, 401),
            (Reason::AppUnreachable, 503),
            (Reason::WorkloadUnknown, 503),
            (Reason::CapturePort, 503),
        ];
        for (reason, status) in cases {
            assert_eq!(reason.connect_status(), status, "{}", reason.code());
        }
    }
}
