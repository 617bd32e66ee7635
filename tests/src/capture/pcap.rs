//! Reads a pcap file (libpcap's classic format, `man 5 pcap-savefile`) of Ethernet frames; finds TCP segments in it.
//!
//! Called by `capture.rs`. Knows nothing of the mesh. A file that is still being written ends with the last whole packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::failure::{Context as _, Failure, Outcome};

/// One frame of the link.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The whole frame.
    pub frame: Vec<u8>,
    /// Its TCP segment, if it is one.
    pub tcp: Option<Segment>,
}

/// One TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Sequence number of the first byte of `payload`.
    pub sequence: u32,
    /// It opens a connection.
    pub syn: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Reads all whole packets.
///
/// # Errors
/// When it is not a pcap file of this machine's byte order with Ethernet frames, or a frame was cut.
pub fn read(file: &[u8]) -> Outcome<Vec<Packet>> {
    const MICROSECONDS: u32 = 0xa1b2_c3d4;
    const NANOSECONDS: u32 = 0xa1b2_3c4d;
    const ETHERNET: u32 = 1;
    const HEADER: usize = 24;
    let magic = word(file, 0).context("no pcap header yet")?;
    let link = word(file, 20).context("no pcap header yet")?;
    if ![MICROSECONDS, NANOSECONDS].contains(&magic) || link != ETHERNET {
        return Err(Failure::new(format!(
            "not a pcap file of Ethernet frames: {magic:#x}, link type {link}"
        )));
    }
    let mut packets = Vec::new();
    let mut rest = file.get(HEADER..).unwrap_or_default();
    while let (Some(captured), Some(original)) = (word(rest, 8), word(rest, 12)) {
        if captured != original {
            return Err(Failure::new(format!(
                "a frame was cut: {captured} of {original} bytes"
            )));
        }
        let Some(frame) = rest.get(16..16 + captured as usize) else {
            break;
        };
        packets.push(Packet {
            frame: frame.to_vec(),
            tcp: segment(frame),
        });
        rest = rest.get(16 + captured as usize..).unwrap_or_default();
    }
    Ok(packets)
}

/// The TCP segment in an Ethernet frame.
fn segment(frame: &[u8]) -> Option<Segment> {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    match half(frame, 12)? {
        IPV4 if *packet.get(9)? == TCP => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(half(packet, 2)?);
            // A length of 0 is a segment that the card would have cut (GSO above 64 KiB).
            let end = if total == 0 { packet.len() } else { total };
            let ip = |at: usize| {
                Some(IpAddr::from(Ipv4Addr::from(
                    packet.get(at..at + 4)?.first_chunk::<4>().copied()?,
                )))
            };
            tcp(ip(12)?, ip(16)?, packet.get(header..end)?)
        }
        IPV6 if *packet.get(6)? == TCP => {
            let length = usize::from(half(packet, 4)?);
            let end = if length == 0 {
                packet.len()
            } else {
                40 + length
            };
            let ip = |at: usize| {
                Some(IpAddr::from(Ipv6Addr::from(
                    packet.get(at..at + 16)?.first_chunk::<16>().copied()?,
                )))
            };
            tcp(ip(8)?, ip(24)?, packet.get(40..end)?)
        }
        _ => None,
    }
}

fn tcp(from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<Segment> {
    const SYN: u8 = 0x02;
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flags = *segment.get(13)?;
    Some(Segment {
        from: (from, half(segment, 0)?).into(),
        to: (to, half(segment, 2)?).into(),
        sequence: u32::from_be_bytes(*segment.get(4..8)?.first_chunk::<4>()?),
        syn: flags & SYN != 0,
        payload: segment.get(header..)?.to_vec(),
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        *bytes.get(at..at + 2)?.first_chunk::<2>()?,
    ))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        *bytes.get(at..at + 4)?.first_chunk::<4>()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.extend(word.to_ne_bytes());
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            for word in [0, 0, length, length] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(*frame);
        }
        file
    }

    fn frame_v4(payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(40 + payload.len()).unwrap();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([
            0x30, 0x39, 0x3a, 0xa0, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(payload);
        frame.extend([0; 6]);
        frame
    }

    #[test]
    fn finds_the_segment_and_leaves_padding_out() {
        let packets = read(&file(&[&frame_v4(b"hello")])).unwrap();
        let segment = packets[0].tcp.clone().unwrap();
        assert_eq!(segment.payload, b"hello");
        assert_eq!(segment.from, "10.0.0.1:12345".parse().unwrap());
        assert_eq!(segment.to, "10.0.0.2:15008".parse().unwrap());
        assert_eq!((segment.sequence, segment.syn), (7, false));
    }

    #[test]
    fn a_file_in_the_middle_of_a_packet_yields_the_packets_before() {
        let whole = file(&[&frame_v4(b"one"), &frame_v4(b"two")]);
        for cut in 0..whole.len() {
            let packets = read(&whole[..cut]).unwrap_or_default();
            assert!(packets.len() <= 1, "{cut}");
        }
        assert_eq!(read(&whole).unwrap().len(), 2);
    }

    #[test]
    fn refuses_what_is_no_pcap_file() {
        assert!(read(&[7; 64]).is_err());
    }
}
