"""Shared state behind whole, atomic decisions: one contract per subject, kept by each backend.

`requests` is the way of one request through it: it enters once and leaves once. `limits`,
`generations`, `pacing`, `images` and `availability` are what there is beside it. `memory` keeps the
contracts in one process, `redis` with the scripts of `lua` on a server that all workers share.
"""
