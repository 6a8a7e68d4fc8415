//! The command line: one file per command, the same grammar locally and over ssh.
