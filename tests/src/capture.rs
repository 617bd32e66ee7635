//! Records what passes a link (`tcpdump`) and answers questions about it: was this marker seen, was that TLS.
//!
//! Called by tests and the demonstration. The file is read back by `capture/pcap.rs`; nothing is taken from tcpdump's words.

pub mod pcap;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::inside::send_datagram;
use crate::netns::{Site, UPLINK};
use crate::poll;
use crate::process::{Launch, Life, Process};

pub use pcap::Packet;

/// A recording that goes on.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
    site: Site,
}

/// What was recorded, in the order of the link.
#[derive(Debug)]
pub struct Recording {
    packets: Vec<Packet>,
}

impl Capture {
    /// Starts to record everything on a node's link to the others; returns when tcpdump listens.
    ///
    /// # Errors
    /// When tcpdump is not there or may not listen.
    pub fn start(site: &Site, file: PathBuf) -> Outcome<Self> {
        let log = file.with_extension("tcpdump.log");
        let _older = std::fs::remove_file(&file);
        let mut tcpdump = Launch::new("tcpdump", "tcpdump", log)
            .in_netns(&site.netns)
            .for_life(Life::Tied)
            .args([
                "-i",
                UPLINK,
                "-n",
                "-U",
                "--immediate-mode",
                "-B",
                "32768",
                "-s",
                "0",
                "-Z",
                "root",
                "-w",
            ])
            .args([file.display().to_string()])
            .start()
            .context("tcpdump (package tcpdump)")?;
        tcpdump.wait_for_line(poll::SOON, |line| line.contains("listening on"))?;
        Ok(Self {
            tcpdump,
            file,
            site: site.clone(),
        })
    }

    /// Ends the recording once everything that passed before this call is in it.
    ///
    /// A datagram with a random word is sent over the link and waited for: what passed earlier stands before it.
    ///
    /// # Errors
    /// When the word does not arrive, or tcpdump says that the kernel dropped packets.
    pub fn finish(mut self, over: SocketAddr) -> Outcome<Recording> {
        let word = format!("end-of-recording-{:032x}", fastrand::u128(..));
        send_datagram(&self.site.netns, over, word.as_bytes())?;
        let packets = poll::until_ok(poll::SOON, || {
            let packets = pcap::read(&std::fs::read(&self.file)?)?;
            let end = packets
                .iter()
                .position(|packet| contains(&packet.frame, word.as_bytes()));
            let end = end.context("the end of the recording has not been seen")?;
            Ok::<_, Failure>(packets.into_iter().take(end).collect::<Vec<_>>())
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(poll::SOON)?;
        let said = self.tcpdump.log();
        ensure(
            said.contains("0 packets dropped by kernel"),
            format_args!("incomplete recording: {said}"),
        )?;
        Ok(Recording { packets })
    }
}

impl Recording {
    /// Every packet, in order.
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// True when `word` passed: in one frame, or across the segments of one direction of one connection.
    pub fn shows(&self, word: &[u8]) -> bool {
        self.packets
            .iter()
            .any(|packet| contains(&packet.frame, word))
            || self
                .streams()
                .iter()
                .any(|stream| contains(&stream.bytes, word))
    }

    /// The byte streams of TCP, one per direction of a connection; repeated segments count once.
    pub fn streams(&self) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        for segment in self.packets.iter().filter_map(|packet| packet.tcp.as_ref()) {
            let known = streams
                .iter_mut()
                .find(|s| s.from == segment.from && s.to == segment.to && !segment.syn);
            match known {
                Some(stream) => stream.append(segment),
                None => streams.push(Stream::begin(segment)),
            }
        }
        streams
    }
}

/// One direction of one TCP connection.
#[derive(Debug)]
pub struct Stream {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// What was sent, as far as it was recorded.
    pub bytes: Vec<u8>,
    next: Option<u32>,
}

impl Stream {
    fn begin(segment: &pcap::Segment) -> Self {
        let mut stream = Self {
            from: segment.from,
            to: segment.to,
            bytes: Vec::new(),
            next: None,
        };
        if segment.syn {
            stream.next = Some(segment.sequence.wrapping_add(1));
        } else {
            stream.append(segment);
        }
        stream
    }

    /// Appends what is new in the segment; what is out of order is kept too, where it was seen.
    fn append(&mut self, segment: &pcap::Segment) {
        let length = u32::try_from(segment.payload.len()).unwrap_or(u32::MAX);
        let next = self.next.unwrap_or(segment.sequence);
        let known = next.wrapping_sub(segment.sequence);
        let skip = if known < u32::MAX / 2 {
            known.min(length)
        } else {
            0
        };
        let fresh = usize::try_from(skip)
            .ok()
            .and_then(|skip| segment.payload.get(skip..));
        self.bytes.extend_from_slice(fresh.unwrap_or_default());
        let end = segment.sequence.wrapping_add(length);
        if end.wrapping_sub(next) < u32::MAX / 2 {
            self.next = Some(end);
        }
    }
}

/// True when `word` is somewhere in `bytes`.
pub fn contains(bytes: &[u8], word: &[u8]) -> bool {
    !word.is_empty() && bytes.windows(word.len()).any(|window| window == word)
}
