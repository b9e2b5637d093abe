"""The processes: a supervisor, its workers, and HTTP on their sockets."""
