//! Messages between the node agent and ztunnel: which pods are served, and in which network namespaces.
//!
//! Encoded by one side and decoded by the other, one message a packet of [`crate::handoff`]. ZDS of istio/ztunnel, so that
//! either side can be Istio's. What is not exactly one of these messages, or comes with another number of descriptors,
//! is an error of the protocol: nothing is guessed, since a wrong guess would serve the wrong namespace.

use std::os::fd::OwnedFd;

use ambit_core::names::{NamespacedName, PodUid, Text};
use prost::Message;
use thiserror::Error;

use crate::handoff::Packet;
use crate::proto::zds;
use crate::proto::zds::workload_request::Payload;
use crate::proto::zds::workload_response::Payload as Response;

/// Longest error text in an acknowledgement, in bytes: with it a packet stays below [`crate::handoff::MAX_PACKET`].
const MAX_ERROR: usize = 900;

/// A pod as the agent names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoffPod {
    /// Tells a pod from its successor of the same name.
    pub uid: PodUid,
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its service account.
    pub service_account: Text,
}

/// What the agent asks of ztunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Serve this pod; the packet carries its network namespace.
    Add(HandoffPod),
    /// Go on serving this pod, whose namespace the agent does not hold; in a snapshot only.
    Keep(PodUid),
    /// Stop serving this pod.
    Remove(PodUid),
    /// The snapshot is complete: what was in it is all there is.
    SnapshotSent,
}

/// Why a packet is not a message of the protocol.
#[derive(Debug, Error)]
pub enum ZdsError {
    /// The bytes are not the message that is due.
    #[error("the packet is not a {message}: {source}")]
    Protobuf {
        /// The message that was due.
        message: &'static str,
        /// What the decoder found.
        source: prost::DecodeError,
    },
    /// The message holds nothing that is known; the other side may be newer.
    #[error("the {0} holds nothing that this version knows")]
    Unknown(&'static str),
    /// A field that has to be there is empty.
    #[error("the message has no {0}")]
    Missing(&'static str),
    /// Another number of descriptors than the message needs.
    #[error("{request} came with {found} descriptors, it needs {needed}")]
    Descriptors {
        /// The request.
        request: &'static str,
        /// Descriptors that came.
        found: usize,
        /// Descriptors that belong to it.
        needed: usize,
    },
    /// The other side speaks another version.
    #[error("the other side speaks version {0} of the protocol, this one speaks version 1")]
    Version(i32),
}

impl Request {
    /// The message's bytes. [`Request::Add`] needs the descriptor of the namespace beside them.
    pub fn encode(&self) -> Vec<u8> {
        let payload = match self {
            Self::Add(pod) => Payload::Add(zds::AddWorkload {
                uid: pod.uid.to_string(),
                workload_info: Some(zds::WorkloadInfo {
                    name: pod.name.name.to_string(),
                    namespace: pod.name.namespace.to_string(),
                    service_account: pod.service_account.to_string(),
                }),
            }),
            Self::Keep(uid) => Payload::Keep(zds::KeepWorkload {
                uid: uid.to_string(),
            }),
            Self::Remove(uid) => Payload::Del(zds::DelWorkload {
                uid: uid.to_string(),
            }),
            Self::SnapshotSent => Payload::SnapshotSent(zds::SnapshotSent {}),
        };
        let message = zds::WorkloadRequest {
            payload: Some(payload),
        };
        message.encode_to_vec()
    }

    /// Reads a packet. The descriptor is there for [`Request::Add`] and for nothing else.
    ///
    /// # Errors
    /// When the packet is anything else than one of the requests with what belongs to it; its descriptors are closed.
    pub fn decode(packet: Packet) -> Result<(Self, Option<OwnedFd>), ZdsError> {
        let message: zds::WorkloadRequest = decode("WorkloadRequest", &packet)?;
        let payload = message.payload.ok_or(ZdsError::Unknown("request"))?;
        let request = match payload {
            Payload::Add(add) => Self::Add(pod(add)?),
            Payload::Keep(keep) => Self::Keep(uid(keep.uid)?),
            Payload::Del(del) => Self::Remove(uid(del.uid)?),
            Payload::SnapshotSent(zds::SnapshotSent {}) => Self::SnapshotSent,
        };
        let needed = usize::from(matches!(request, Self::Add(_)));
        let found = packet.descriptors.len();
        if found != needed {
            let request = request.word();
            return Err(ZdsError::Descriptors {
                request,
                found,
                needed,
            });
        }
        Ok((request, packet.descriptors.into_iter().next()))
    }

    /// The request's kind, for logs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Add(_) => "add",
            Self::Keep(_) => "keep",
            Self::Remove(_) => "remove",
            Self::SnapshotSent => "snapshot sent",
        }
    }
}

/// ztunnel's first packet.
pub fn hello() -> Vec<u8> {
    let version = zds::Version::V1.into();
    zds::ZdsHello { version }.encode_to_vec()
}

/// Checks ztunnel's first packet.
///
/// # Errors
/// When it is something else, or of another version.
pub fn check_hello(packet: &Packet) -> Result<(), ZdsError> {
    let message: zds::ZdsHello = decode("ZdsHello", packet)?;
    match zds::Version::try_from(message.version) {
        Ok(zds::Version::V1) => Ok(()),
        _ => Err(ZdsError::Version(message.version)),
    }
}

/// ztunnel's answer to a request: done, or why not. Long texts are cut.
pub fn ack(outcome: Result<(), &str>) -> Vec<u8> {
    let error = match outcome {
        Ok(()) => "",
        // An empty text would say that it was done.
        Err("") => "failed",
        Err(text) => text
            .get(..text.floor_char_boundary(MAX_ERROR))
            .unwrap_or("failed"),
    };
    let error = error.to_owned();
    let payload = Some(Response::Ack(zds::Ack { error }));
    zds::WorkloadResponse { payload }.encode_to_vec()
}

/// Reads ztunnel's answer: done, or the text that says why not.
///
/// # Errors
/// When the packet is something else.
pub fn decode_ack(packet: &Packet) -> Result<Result<(), String>, ZdsError> {
    let message: zds::WorkloadResponse = decode("WorkloadResponse", packet)?;
    let Response::Ack(ack) = message.payload.ok_or(ZdsError::Unknown("response"))?;
    Ok(match ack.error.is_empty() {
        true => Ok(()),
        false => Err(ack.error),
    })
}

fn decode<M: Message + Default>(message: &'static str, packet: &Packet) -> Result<M, ZdsError> {
    M::decode(packet.bytes.as_slice()).map_err(|source| ZdsError::Protobuf { message, source })
}

fn pod(add: zds::AddWorkload) -> Result<HandoffPod, ZdsError> {
    let info = add
        .workload_info
        .ok_or(ZdsError::Missing("workload_info"))?;
    let fields = [
        ("workload_info.namespace", &info.namespace),
        ("workload_info.name", &info.name),
        ("workload_info.service_account", &info.service_account),
    ];
    if let Some((field, _)) = fields.iter().find(|(_, text)| text.is_empty()) {
        return Err(ZdsError::Missing(field));
    }
    Ok(HandoffPod {
        uid: uid(add.uid)?,
        name: NamespacedName::new(info.namespace, info.name),
        service_account: info.service_account.into(),
    })
}

fn uid(text: String) -> Result<PodUid, ZdsError> {
    match text.is_empty() {
        true => Err(ZdsError::Missing("uid")),
        false => Ok(PodUid::new(text)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    fn packet(bytes: Vec<u8>, descriptors: usize) -> Packet {
        let open = |_| File::open("/dev/null").unwrap().into();
        Packet {
            bytes,
            descriptors: (0..descriptors).map(open).collect(),
        }
    }

    fn web() -> HandoffPod {
        HandoffPod {
            uid: PodUid::new("uid-1"),
            name: NamespacedName::new("shop", "web"),
            service_account: "web".into(),
        }
    }

    #[test]
    fn requests_arrive_as_they_were_sent() {
        let uid = || PodUid::new("uid-1");
        let cases = [
            (Request::Add(web()), 1),
            (Request::Keep(uid()), 0),
            (Request::Remove(uid()), 0),
            (Request::SnapshotSent, 0),
        ];
        for (sent, descriptors) in cases {
            let (request, netns) = Request::decode(packet(sent.encode(), descriptors)).unwrap();
            assert_eq!(request, sent);
            assert_eq!(netns.is_some(), descriptors == 1);
        }
    }

    #[test]
    fn another_number_of_descriptors_is_refused() {
        for (request, found) in [
            (Request::Add(web()), 0),
            (Request::Add(web()), 2),
            (Request::SnapshotSent, 1),
        ] {
            let refused = Request::decode(packet(request.encode(), found));
            assert!(
                matches!(refused, Err(ZdsError::Descriptors { found: f, .. }) if f == found),
                "{request:?}"
            );
        }
    }

    #[test]
    fn requests_with_gaps_are_refused() {
        let nobody = |name: &str| HandoffPod {
            name: NamespacedName::new("shop", name),
            ..web()
        };
        for bytes in [
            vec![],
            Request::Add(nobody("")).encode(),
            Request::Keep(PodUid::new("")).encode(),
            // Field 4 of the oneof, which no version has defined, and a truncated field.
            vec![0x22, 0x00],
            vec![0x0a, 0x7f],
        ] {
            assert!(
                Request::decode(packet(bytes.clone(), 1)).is_err(),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn field_numbers_are_those_of_zds() {
        // WorkloadRequest.del is field 2 and DelWorkload.uid is field 2; keep is field 5.
        let uid = PodUid::new("a");
        assert_eq!(
            Request::Remove(uid.clone()).encode(),
            [0x12, 3, 0x12, 1, b'a']
        );
        assert_eq!(Request::Keep(uid).encode(), [0x2a, 3, 0x0a, 1, b'a']);
        assert_eq!(hello(), [0x08, 1]);
    }

    #[test]
    fn acknowledgements_carry_the_error_and_fit_a_packet() {
        let read = |bytes| decode_ack(&packet(bytes, 0)).unwrap();
        assert_eq!(read(ack(Ok(()))), Ok(()));
        assert_eq!(read(ack(Err("port in use"))), Err("port in use".to_owned()));
        assert!(read(ack(Err(""))).is_err());
        assert!(ack(Err(&"ä".repeat(2000))).len() <= crate::handoff::MAX_PACKET);
    }

    #[test]
    fn another_version_is_refused() {
        assert!(check_hello(&packet(hello(), 0)).is_ok());
        assert!(matches!(
            check_hello(&packet(vec![0x08, 2], 0)),
            Err(ZdsError::Version(2))
        ));
        assert!(check_hello(&packet(vec![], 0)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), descriptors in 0..3_usize) {
            drop(Request::decode(packet(bytes.clone(), descriptors)));
            drop(decode_ack(&packet(bytes.clone(), 0)));
            drop(check_hello(&packet(bytes, 0)));
        }
    }
}
