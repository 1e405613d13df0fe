//! Root file systems and volumes: the share and its file daemon.
