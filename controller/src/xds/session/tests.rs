//! What a proxy is sent, message by message.
