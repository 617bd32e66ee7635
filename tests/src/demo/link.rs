//! Requests of the demonstration, and what the link between the nodes shows of them.
//!
//! Called by `acts.rs`. Everything said here comes from the recording of the link.

use std::net::{IpAddr, SocketAddr};

use super::scene::Scene;
use crate::capture::tls::records;
use crate::capture::{Capture, Recording, Stream};
use crate::command::run_in;
use crate::failure::{Context as _, Outcome, ensure};
use crate::netns::Site;

/// Where TLS must go.
pub(super) const HBONE: u16 = ambit_core::ports::INBOUND_HBONE;

/// A request by `curl` in a pod that carries a random marker.
pub(super) struct Request {
    from: Site,
    url: String,
    pub(super) marker: String,
}

impl Request {
    pub(super) fn new(from: &Site, to: IpAddr, port: u16) -> Self {
        Self {
            from: from.clone(),
            url: format!("http://{}/", SocketAddr::from((to, port))),
            marker: format!("{:032x}", fastrand::u128(..)),
        }
    }

    /// Sends it; returns the answer, or what curl says.
    pub(super) fn send(&self) -> Outcome<String> {
        let header = format!("x-marker: {}", self.marker);
        run_in(
            &self.from.netns,
            "curl",
            ["-sS", "--max-time", "10", "-H", &header, &self.url],
        )
    }
}

/// Sends a request while the link between the nodes is recorded; shows both.
pub(super) fn recorded(scene: &Scene, request: &Request) -> Outcome<Recording> {
    let link = scene.world.node(0)?;
    let capture = Capture::start(&link.site, scene.mesh.folder().join("link.pcap"))?;
    println!(
        "  {}$ curl -H 'x-marker: {}' {}",
        request.from.name, request.marker, request.url
    );
    let answer = request.send()?;
    ensure(
        answer.contains("hello from orders"),
        format_args!("answer: {answer}"),
    )?;
    println!("  {}", answer.trim());
    capture.finish((scene.world.control().addresses.v4, 9).into())
}

/// The directions of connections to port 15008 on the link.
pub(super) fn tunnels(seen: &Recording) -> Vec<Stream> {
    seen.streams()
        .into_iter()
        .filter(|stream| stream.to.port() == HBONE || stream.from.port() == HBONE)
        .collect()
}

/// Checks that what passed between the pods is TLS to 15008 and nothing else, and prints how much it was.
pub(super) fn only_tls(scene: &Scene, seen: &Recording, request: &Request) -> Outcome {
    ensure(
        !seen.shows(request.marker.as_bytes()),
        "the marker was seen on the link: what pods say is not encrypted",
    )?;
    let pods = [scene.web.addresses.v4, scene.orders.addresses.v4].map(IpAddr::from);
    let between =
        |stream: &&Stream| pods.contains(&stream.from.ip()) && pods.contains(&stream.to.ip());
    let (mut count, mut bytes) = (0, 0);
    for stream in seen.streams().iter().filter(between) {
        ensure(
            stream.to.port() == HBONE || stream.from.port() == HBONE,
            format_args!("{} → {} is not a tunnel", stream.from, stream.to),
        )?;
        let tls =
            records(&stream.bytes).context(format_args!("{} → {}", stream.from, stream.to))?;
        count += tls.encrypted;
        bytes += tls.encrypted_bytes;
    }
    ensure(count > 0, "no TLS record between the pods in the recording")?;
    println!(
        "  the link shows {count} encrypted TLS records ({bytes} bytes), port {HBONE}; the marker is in none of {} packets",
        seen.packets().len()
    );
    Ok(())
}
