//! The services as callers see them: every call without, with a wrong, an expired and a foreign token.
