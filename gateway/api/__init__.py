"""The HTTP surface: Litestar handlers, and how requests and answers look on the wire."""
