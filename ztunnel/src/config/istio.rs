//! Settings of istio/ztunnel that are accepted and do nothing here, so that its manifests can be used as they are.
//!
//! Read by `config` after all others. Each that is given is reported: what the operator wanted is not in force.

use ambit_net::env::EnvReader;

/// Istio's settings for what is not done here, or is fixed.
const NOT_IN_FORCE: &[(&str, &str)] = &[
    ("ISTIO_META_DNS_CAPTURE", "DNS is not captured."),
    ("DNS_PROXY_ADDR", "DNS is not captured."),
    (
        "CRL_PATH",
        "certificates are not checked for revocation; keep their lifetime short.",
    ),
    (
        "COMPLIANCE_POLICY",
        "X25519MLKEM768 is preferred and X25519, P-256 and P-384 are accepted.",
    ),
    ("TLS12_ENABLED", "only TLS 1.3 is spoken."),
    ("PROXY_MODE", "one proxy serves the node."),
    ("XDS_ON_DEMAND", "the whole mesh is subscribed to."),
    ("LOCAL_XDS", "the mesh comes from the controller only."),
    ("LOCAL_XDS_PATH", "the mesh comes from the controller only."),
    ("FAKE_CA", "certificates come from the controller only."),
    ("UNSTABLE_ENABLE_SOCKS5", "SOCKS5 is not served."),
    (
        "ENABLE_ORIG_SRC",
        "the client's address is always preserved.",
    ),
    (
        "PACKET_MARK",
        "the mark is 0x539, as in the redirect rules.",
    ),
    (
        "INPOD_PORT_REUSE",
        "ports are always shared between workers.",
    ),
    ("KEEPALIVE_ENABLED", "keepalive is always on."),
    ("USER_TIMEOUT_ENABLED", "TCP_USER_TIMEOUT is not set."),
];

/// Asks for all of them.
pub(super) fn accept(env: &mut EnvReader) {
    for (name, meaning) in NOT_IN_FORCE {
        env.setting(name, meaning).not_in_force();
    }
}
