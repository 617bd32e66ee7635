//! Settings of the way to the controller, for xDS and for the CA.
//!
//! Read by `config`. Nothing is opened here: the files are read before each use.

use ambit_core::names::ClusterId;
use ambit_net::env::EnvReader;
use ambit_net::grpc::Remote;

/// Where the controller is by convention.
pub(super) const CONTROLLER: &str = "https://ambit-controller.ambit-system.svc:15012";

/// The controller that tells what is in the mesh.
pub(super) fn xds(env: &mut EnvReader, cluster: &ClusterId) -> Remote {
    let address = env
        .setting(
            "AMBIT_XDS_ADDRESS",
            "Controller that tells what is in the mesh, `https://HOST:PORT`.",
        )
        .or("XDS_ADDRESS")
        .text(CONTROLLER);
    let server_name = env
        .setting(
            "AMBIT_XDS_SERVER_NAME",
            "Name in its certificate, where that is not the address's host.",
        )
        .or("ALT_XDS_HOSTNAME")
        .optional_text();
    let root_file = env
        .setting(
            "AMBIT_XDS_ROOT",
            "PEM file with the roots that its certificate is checked against.",
        )
        .or("XDS_ROOT_CA")
        .path("./var/run/secrets/istio/root-cert.pem");
    let token_file = env
        .setting(
            "AMBIT_TOKEN_FILE",
            "File with the token that names this node to it and to the CA; read before each use.",
        )
        .or("AUTH_TOKEN")
        .path("./var/run/secrets/tokens/istio-token");
    Remote {
        address,
        server_name,
        root_file,
        token_file,
        cluster: cluster.clone(),
    }
}

/// The controller that signs: the same one unless something else is said.
pub(super) fn ca(env: &mut EnvReader, xds: &Remote) -> Remote {
    let address = env
        .setting(
            "AMBIT_CA_ADDRESS",
            "Controller that signs the pods' certificates; without it, that of xDS.",
        )
        .or("CA_ADDRESS")
        .optional_text();
    let server_name = env
        .setting(
            "AMBIT_CA_SERVER_NAME",
            "Name in that one's certificate; without it, that of xDS.",
        )
        .or("ALT_CA_HOSTNAME")
        .optional_text();
    let root_file = env
        .setting(
            "AMBIT_CA_ROOT",
            "PEM file with the roots for that one; without it, that of xDS.",
        )
        .or("CA_ROOT_CA")
        .optional_path();
    Remote {
        address: address.unwrap_or_else(|| xds.address.clone()),
        server_name: server_name.or_else(|| xds.server_name.clone()),
        root_file: root_file.unwrap_or_else(|| xds.root_file.clone()),
        ..xds.clone()
    }
}
