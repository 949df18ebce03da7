"""The version of this distribution; nothing else, so that a build can read it without any dependency."""

VERSION = "0.5.0"
