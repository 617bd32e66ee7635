//! A connection to an echo that says something now and then: it shows whether what is open goes on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use tests::failure::{Context as _, Outcome, ensure_eq};
use tests::inside;
use tests::netns::Site;

/// One connection.
pub(crate) struct Talk(TcpStream);

impl Talk {
    /// Opens it and hears the echo once.
    pub(crate) fn start(from: &Site, to: SocketAddr) -> Outcome<Self> {
        let mut talk = Self(inside::connect(&from.netns, to)?);
        talk.say("hello")?;
        Ok(talk)
    }

    /// Says something and hears it.
    pub(crate) fn say(&mut self, word: &str) -> Outcome {
        self.0.write_all(word.as_bytes()).context("say")?;
        let mut heard = vec![0; word.len()];
        self.0.read_exact(&mut heard).context("hear")?;
        ensure_eq(heard, word.as_bytes(), "the echo")
    }
}
