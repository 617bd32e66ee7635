//! Reads the TLS records of one recorded direction (RFC 8446 §5.1) and what its hello says in clear.
//!
//! Called by tests and the demonstration to state that a stream is TLS from its first to its last byte.

use crate::failure::{Context as _, Failure, Outcome, ensure};

/// What one direction of a TLS connection consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Records of encrypted content.
    pub encrypted: usize,
    /// Bytes of encrypted content, without record headers.
    pub encrypted_bytes: usize,
    /// Versions that a hello offers or chooses (0x0304 is TLS 1.3).
    pub versions: Vec<u16>,
    /// Key exchange that a server's hello chose or a client's hello sent shares for (0x11ec is X25519MLKEM768).
    pub groups: Vec<u16>,
}

/// TLS 1.3.
pub const TLS13: u16 = 0x0304;
/// The post-quantum hybrid (draft-ietf-tls-ecdhe-mlkem).
pub const X25519MLKEM768: u16 = 0x11ec;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Splits a stream into records. The last one may be cut by the end of the recording.
///
/// # Errors
/// When a byte of the stream belongs to no record, or content in clear follows the hello.
pub fn records(stream: &[u8]) -> Outcome<Records> {
    let mut seen = Records::default();
    let mut rest = stream;
    while let [kind, major, minor, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        ensure(
            *major == 3 && *minor <= 4 && length <= (1 << 14) + 256,
            format_args!(
                "not a TLS record at byte {}: {kind} {major} {minor} {length}",
                stream.len() - rest.len()
            ),
        )?;
        let body = after.get(..length).unwrap_or(after);
        match *kind {
            APPLICATION_DATA => {
                seen.encrypted += 1;
                seen.encrypted_bytes += body.len();
            }
            HANDSHAKE if seen.encrypted == 0 => hello(body, &mut seen).context("hello")?,
            CHANGE_CIPHER_SPEC if seen.encrypted == 0 => {}
            ALERT if seen.encrypted == 0 => {}
            other => {
                return Err(Failure::new(format!(
                    "a record of type {other} in clear after encrypted ones"
                )));
            }
        }
        rest = after.get(length..).unwrap_or_default();
    }
    Ok(seen)
}

/// Reads the extensions of a ClientHello or ServerHello (RFC 8446 §4.1.2 and §4.1.3).
fn hello(body: &[u8], seen: &mut Records) -> Outcome {
    const CLIENT: u8 = 1;
    const SERVER: u8 = 2;
    const SUPPORTED_VERSIONS: u16 = 43;
    const KEY_SHARE: u16 = 51;
    let mut cursor = Cursor(body);
    let kind = cursor.byte()?;
    ensure(
        kind == CLIENT || kind == SERVER,
        format_args!("handshake message {kind} in clear"),
    )?;
    cursor.take(3 + 2 + 32)?;
    let session = cursor.byte()?;
    cursor.take(session.into())?;
    if kind == CLIENT {
        let suites = cursor.pair()?;
        cursor.take(suites.into())?;
        let compressions = cursor.byte()?;
        cursor.take(compressions.into())?;
    } else {
        cursor.take(3)?;
    }
    let length = cursor.pair()?;
    let mut extensions = Cursor(cursor.take(length.into())?);
    while !extensions.0.is_empty() {
        let name = extensions.pair()?;
        let length = extensions.pair()?;
        let mut content = Cursor(extensions.take(length.into())?);
        match (name, kind) {
            (SUPPORTED_VERSIONS, CLIENT) => {
                content.byte()?;
                while !content.0.is_empty() {
                    seen.versions.push(content.pair()?);
                }
            }
            (SUPPORTED_VERSIONS, _) => seen.versions.push(content.pair()?),
            (KEY_SHARE, CLIENT) => {
                content.pair()?;
                while !content.0.is_empty() {
                    seen.groups.push(content.pair()?);
                    let share = content.pair()?;
                    content.take(share.into())?;
                }
            }
            (KEY_SHARE, _) => seen.groups.push(content.pair()?),
            _ => {}
        }
    }
    Ok(())
}

/// Bytes that are consumed from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("it is cut")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Outcome<u8> {
        self.take(1)?.first().copied().context("it is cut")
    }

    fn pair(&mut self) -> Outcome<u16> {
        self.take(2)?
            .first_chunk::<2>()
            .map(|pair| u16::from_be_bytes(*pair))
            .context("it is cut")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of `kind` with `body`.
    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 3, 3];
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn server_hello() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0, 3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 0x02, 0]);
        body.extend([0, 14, 0, 43, 0, 2, 3, 4, 0, 51, 0, 4, 0x11, 0xec, 0, 0]);
        record(HANDSHAKE, &body)
    }

    #[test]
    fn reads_version_and_group_and_counts_what_is_encrypted() {
        let mut stream = server_hello();
        stream.extend(record(CHANGE_CIPHER_SPEC, &[1]));
        stream.extend(record(APPLICATION_DATA, &[9; 100]));
        stream.extend(record(APPLICATION_DATA, &[9; 50]));
        let seen = records(&stream).unwrap();
        assert_eq!((seen.encrypted, seen.encrypted_bytes), (2, 150));
        assert_eq!(
            (seen.versions, seen.groups),
            (vec![TLS13], vec![X25519MLKEM768])
        );
    }

    #[test]
    fn text_in_clear_is_not_tls() {
        assert!(records(b"GET / HTTP/1.1\r\n").is_err());
        let mut stream = record(APPLICATION_DATA, &[9; 10]);
        stream.extend(b"GET / HTTP/1.1\r\n");
        assert!(records(&stream).is_err());
    }
}
