//! Talking to the kernel over netlink, in the namespace of the calling thread: one request, one dump, or one batch.
//!
//! Used by the siblings of this file; knows neither nftables nor routes. The kernel has its answer ready when a send
//! returns, so nothing here waits: a missing answer is an error. Protocol: man 7 netlink, `uapi/linux/netlink.h`.

use std::io;

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

/// Flag of a dump that changed while it was read (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often such a dump is repeated before it counts as failed.
const DUMP_ATTEMPTS: usize = 8;
/// Length of the netlink header that an error message repeats, bytes.
const ECHOED_HEADER: usize = 16;
/// Attribute of an error message: the kernel's own words (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;
/// Attribute of an error message: where in the request the offending attribute is (`NLMSGERR_ATTR_OFFS`).
const ERROR_OFFSET: u16 = 2;

/// Why a conversation failed.
#[derive(Debug, Error)]
pub(super) enum NetlinkError {
    /// The socket could not be made or used.
    #[error("netlink: {0}")]
    Socket(#[source] io::Error),
    /// The kernel answered with bytes that are not netlink.
    #[error("netlink answer not understood: {0}")]
    Garbled(String),
    /// The kernel did not answer where it should have.
    #[error("the kernel gave no answer over netlink")]
    Silent,
    /// The kernel refused.
    #[error("{0}")]
    Refused(Refusal),
}

/// A refusal by the kernel.
#[derive(Debug, Error)]
#[error("{source}{}", text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
pub(super) struct Refusal {
    /// Which message of the batch was refused, from 0.
    pub(super) index: usize,
    /// The system's error.
    pub(super) source: io::Error,
    /// The kernel's own words, if it had any.
    pub(super) text: Option<String>,
    /// Value of the attribute that the kernel points at, if it does.
    pub(super) attribute: Option<Vec<u8>>,
}

impl NetlinkError {
    /// The same as an error of the standard library, words included.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Socket(error) => error,
            other => io::Error::other(other.to_string()),
        }
    }

    /// The refusal's system error number, if this is one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(refusal) => refusal.source.raw_os_error(),
            Self::Socket(error) => error.raw_os_error(),
            Self::Garbled(_) | Self::Silent => None,
        }
    }
}

/// One netlink socket. It belongs to the namespace of the thread that opened it.
pub(super) struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    /// Opens a socket for one of netlink's protocols (`netlink_sys::protocols`).
    pub(super) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::Socket)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one request and takes its acknowledgement. `flags` come on top of REQUEST and ACK.
    pub(super) fn request<M>(&mut self, message: M, flags: u16) -> Result<(), NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.batch(vec![(message, flags | NLM_F_ACK)])
    }

    /// Sends messages as one datagram and takes the acknowledgements of those that carry `NLM_F_ACK`. The first refusal
    /// is returned; whether the others were carried out is up to the protocol.
    pub(super) fn batch<M>(&mut self, messages: Vec<(M, u16)>) -> Result<(), NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        let mut starts = Vec::new();
        let mut expected = 0_usize;
        for (message, flags) in messages {
            expected += usize::from(flags & NLM_F_ACK != 0);
            starts.push(datagram.len());
            self.append(&mut datagram, message, flags | NLM_F_REQUEST);
        }
        self.send(&datagram)?;

        while expected > 0 {
            for answer in self.receive::<M>()? {
                let answer = answer.map_err(|error| NetlinkError::Garbled(error.to_string()))?;
                let NetlinkPayload::Error(error) = answer.payload else {
                    return Err(unexpected("an acknowledgement", &answer.header));
                };
                if error.code.is_some() {
                    let index = answer.header.sequence_number.wrapping_sub(first) as usize;
                    let request = starts.get(index).and_then(|start| datagram.get(*start..));
                    return Err(NetlinkError::Refused(refusal(index, &error, request)));
                }
                expected = expected.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Asks for all objects of a kind. Objects that cannot be read are left out: they are not as we make ours.
    pub(super) fn dump<M>(&mut self, message: M) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(message.clone())? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Garbled(
            "the kernel's objects changed during every dump".into(),
        ))
    }

    /// One dump; `None` when its objects changed meanwhile.
    fn dump_once<M>(&mut self, message: M) -> Result<Option<Vec<M>>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut datagram = Vec::new();
        self.append(&mut datagram, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.send(&datagram)?;
        let mut objects = Vec::new();
        let mut consistent = true;
        loop {
            for answer in self.receive::<M>()?.into_iter().flatten() {
                consistent &= answer.header.flags & DUMP_INTERRUPTED == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(objects)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        let refusal = refusal(0, &error, Some(&datagram));
                        return Err(NetlinkError::Refused(refusal));
                    }
                    _ => return Err(unexpected("an object", &answer.header)),
                }
            }
        }
    }

    fn append<M: NetlinkSerializable>(&mut self, datagram: &mut Vec<u8>, message: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len().next_multiple_of(4)];
        packet.serialize(&mut bytes);
        datagram.extend_from_slice(&bytes);
    }

    fn send(&self, datagram: &[u8]) -> Result<(), NetlinkError> {
        let sent = self
            .socket
            .send(datagram, 0)
            .map_err(NetlinkError::Socket)?;
        if sent == datagram.len() {
            Ok(())
        } else {
            Err(NetlinkError::Garbled("a request was cut short".into()))
        }
    }

    /// Takes the messages of one datagram.
    fn receive<M>(&self) -> Result<Vec<Result<NetlinkMessage<M>, DecodeError>>, NetlinkError>
    where
        M: NetlinkDeserializable,
    {
        let (datagram, _) = self.socket.recv_from_full().map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                NetlinkError::Silent
            } else {
                NetlinkError::Socket(error)
            }
        })?;
        split(&datagram)
    }
}

/// The messages of one datagram; a message whose content cannot be read is an error of its own.
fn split<M>(datagram: &[u8]) -> Result<Vec<Result<NetlinkMessage<M>, DecodeError>>, NetlinkError>
where
    M: NetlinkDeserializable,
{
    let mut rest = datagram;
    let mut messages = Vec::new();
    while let Some((length, _)) = rest.split_first_chunk() {
        let length = u32::from_ne_bytes(*length) as usize;
        let message = rest.get(..length).filter(|_| length > 0);
        let message = message.ok_or_else(|| NetlinkError::Garbled("a length is wrong".into()))?;
        messages.push(NetlinkMessage::deserialize(message));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

/// Reads what the kernel says about a refused request: its number and, in attributes after the repeated header
/// (`NETLINK_CAP_ACK` cuts off the rest of the request), its words and the place that it points at.
fn refusal(index: usize, error: &ErrorMessage, request: Option<&[u8]>) -> Refusal {
    let attributes = error.header.get(ECHOED_HEADER..).unwrap_or_default();
    let mut text = None;
    let mut attribute = None;
    for nla in NlasIterator::new(attributes).flatten() {
        match nla.kind() {
            ERROR_TEXT => {
                let bytes = nla.value().strip_suffix(&[0]).unwrap_or(nla.value());
                text = Some(String::from_utf8_lossy(bytes).into_owned());
            }
            ERROR_OFFSET => {
                attribute = <[u8; 4]>::try_from(nla.value())
                    .ok()
                    .and_then(|bytes| request?.get(u32::from_ne_bytes(bytes) as usize..))
                    .and_then(|rest| NlasIterator::new(rest).next()?.ok())
                    .map(|nla| nla.value().to_vec());
            }
            _ => {}
        }
    }
    Refusal {
        index,
        source: error.to_io(),
        text,
        attribute,
    }
}

fn unexpected(wanted: &str, header: &NetlinkHeader) -> NetlinkError {
    NetlinkError::Garbled(format!(
        "message type {} instead of {wanted}",
        header.message_type
    ))
}

#[cfg(test)]
mod tests;
