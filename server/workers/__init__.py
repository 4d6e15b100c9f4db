"""Several processes that answer the API of one engine (`--api-workers`).

The main process listens, supervises the engine and hosts it for the workers. It hands each
connection that it accepts to the worker with the fewest; everything about HTTP is the workers'. One
that dies or hangs takes its own connections with it and is replaced; the others do not notice.

serve.py        serve_with_workers  main process: listens, and has the engine
pool.py         WorkerPool          main process: keeps them running, hands out connections
child.py        WorkerChild         main process: one of them, from its start to its end
process.py      main                a worker: an `ApiProcess` around a `HostedEngine`
key_places.py   HostedKeyPlaces     a worker: the limit of API keys, asked for
messages.py                         what the two say to each other, beside the engine's line
metrics_folder.py                   where all of them count
"""
